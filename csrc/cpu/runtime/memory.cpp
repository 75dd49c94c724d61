#include "cpu/runtime/memory.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace cdrl::cpu {

Memory::Memory(size_t bytes)
    : bytes_(static_cast<char*>(::operator new(bytes, std::align_val_t(kAlignment)))) {
  std::memset(bytes_.get(), 0, bytes);
}

void Memory::Free::operator()(char* p) const {
  ::operator delete(p, std::align_val_t(kAlignment));
}

Split split_batch(int64_t batch, int threads, int64_t limit) {
#ifndef _OPENMP
  threads = 1;
#endif
  const int64_t most = std::max(1, threads);
  const int64_t rounds = (batch + most * limit - 1) / (most * limit);
  const int64_t wanted = std::max<int64_t>(1, std::min(batch, rounds * most));
  const int64_t size = std::max<int64_t>(1, (batch + wanted - 1) / wanted);
  const int64_t groups = (batch + size - 1) / size;
  return {size, groups, int(std::max<int64_t>(1, std::min(groups, most)))};
}

}  // namespace cdrl::cpu
