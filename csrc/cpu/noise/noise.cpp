// Cuts arrays into parts and shares these out among threads.
#include "cpu/noise/noise.h"

#include <algorithm>

#include "cpu/runtime/dispatch.h"

namespace cdrl::cpu {

namespace {

// About 30 µs of one thread's work; waking another thread for less costs more than it saves.
constexpr int64_t kBlocksPerThread = 8192;
// 2,048 blocks are 32 KB of each array: small enough to share the work evenly.
constexpr int64_t kBlocksPerPart = 2048;

// Cuts an array into parts of equal size: within samples where these are large, else between them.
struct Cut {
  int64_t batch, blocks, parts_per_sample, samples_per_part, count;

  Cut(int64_t batch, int64_t elements) : batch(batch), blocks(fours_of(elements)) {
    parts_per_sample = std::max<int64_t>(1, blocks / kBlocksPerPart);
    samples_per_part = std::max<int64_t>(1, kBlocksPerPart / std::max<int64_t>(1, blocks));
    count = parts_per_sample > 1 ? batch * parts_per_sample
                                 : (batch + samples_per_part - 1) / samples_per_part;
  }

  Part operator[](int64_t i) const {
    if (parts_per_sample > 1) {
      const int64_t sample = i / parts_per_sample, part = i % parts_per_sample;
      // A multiple of 8 blocks, the largest group that a variant takes at once.
      const int64_t size = (blocks / parts_per_sample + 7) / 8 * 8;
      const bool last = part == parts_per_sample - 1;
      const int64_t begin = std::min(part * size, blocks);
      return {sample, sample + 1, begin, last ? blocks : std::min(begin + size, blocks)};
    }
    const int64_t begin = i * samples_per_part;
    return {begin, std::min(begin + samples_per_part, batch), 0, blocks};
  }

  int threads(int limit) const {
    const int64_t useful = std::min(count, batch * blocks / kBlocksPerThread);
    return int(std::clamp<int64_t>(useful, 1, std::max(1, limit)));
  }
};

// Reads a stream's position from its state, where it has one.
Stream resolved(const Stream& stream) {
  if (stream.state == nullptr) return stream;
  const int64_t* s = stream.state;
  return {uint64_t(s[0]), uint64_t(s[2]), stream.state, uint32_t(s[1])};
}

}  // namespace

void langevin_step(StepArguments a, int threads) {
  a.stream = resolved(a.stream);
  const Cut cut(a.batch, a.elements);
  const auto step = kernels().langevin_step;
  int64_t bad = kNone;
#pragma omp parallel for schedule(dynamic) reduction(min : bad) \
    num_threads(cut.threads(threads)) if (cut.threads(threads) > 1)
  for (int64_t i = 0; i < cut.count; ++i) bad = std::min(bad, step(a, cut[i]));
  if (a.first_bad != nullptr && bad != kNone) {
    *a.first_bad = std::min(*a.first_bad, (int64_t(a.stream.draw) << 31) + bad);
  }
  if (a.stream.state != nullptr) a.stream.state[1] += 1;
}

void normal(const NormalArguments& a, int threads) {
  const Cut cut(a.batch, a.elements);
  const auto fill = kernels().normal;
#pragma omp parallel for schedule(dynamic) \
    num_threads(cut.threads(threads)) if (cut.threads(threads) > 1)
  for (int64_t i = 0; i < cut.count; ++i) fill(a, cut[i]);
}

}  // namespace cdrl::cpu
