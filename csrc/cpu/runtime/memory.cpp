#include "cpu/runtime/memory.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace cdrl::cpu {

Memory::Memory(size_t bytes)
    : bytes_(static_cast<char*>(::operator new(bytes, std::align_val_t(kAlignment)))) {
  std::memset(bytes_.get(), 0, bytes);
}

void Memory::Free::operator()(char* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }

Split split_batch(int64_t batch, int threads, int64_t limit) {
#ifndef _OPENMP
  threads = 1;
#endif
  const int64_t max_threads = std::max(1, threads);
  const int64_t rounds = (batch + max_threads * limit - 1) / (max_threads * limit);
  const int64_t max_groups = std::max<int64_t>(1, std::min(batch, rounds * max_threads));
  const int64_t size = std::max<int64_t>(1, (batch + max_groups - 1) / max_groups);
  const int64_t groups = (batch + size - 1) / size;
  return {size, groups, int(std::max<int64_t>(1, std::min(groups, max_threads)))};
}

}  // namespace cdrl::cpu
