// Writes the noise stream to memory.
#include "cpu/noise/noise.h"
#include "cpu/noise/normals.h"

namespace {

using V = Vector;

// Stores a group's elements, at most `count` of them.
inline void store(float* out, const V::Float* noise, int64_t count) {
  if (count >= kGroup) {
    V::store(out, noise[0]);
    V::store(out + kHalf, noise[1]);
    return;
  }
  float z[kGroup];
  V::store(z, noise[0]);
  V::store(z + kHalf, noise[1]);
  std::memcpy(out, z, size_t(count) * sizeof(float));
}

void small_samples(const cdrl::NormalArguments& a, int64_t begin, int64_t end) {
  SmallSamples noise(a.stream, a.elements, begin);
  float z[SmallSamples::kBufferSize];
  int64_t at = begin * a.elements;
  for (int64_t left = (end - begin) * a.elements; left > 0;) {
    const int64_t available = noise.next(z), count = available < left ? available : left;
    std::memcpy(a.out + at, z, size_t(count) * sizeof(float));
    at += count;
    left -= count;
  }
}

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

void normal(const NormalArguments& a, const Part& part) {
  if (fours_of(a.elements) < kLanes) {
    return small_samples(a, part.sample_begin, part.sample_end);
  }
  const Lanes lanes;
  const Keys keys(a.stream.seed);
  V::Float noise[2 * kUnroll];
  const int64_t stop = 4 * part.block_end < a.elements ? 4 * part.block_end : a.elements;
  for (int64_t sample = part.sample_begin; sample < part.sample_end; ++sample) {
    const uint64_t index = a.stream.first_sample + uint64_t(sample);
    float* out = a.out + sample * a.elements;
    int64_t block = part.block_begin;
    for (; 4 * block + kUnroll * kGroup <= stop; block += kUnroll * kLanes) {
      sample_normals<kUnroll>(index, block, a.stream.draw, keys, lanes, noise);
      for (int i = 0; i < 2 * kUnroll; ++i) V::store(out + 4 * block + i * kHalf, noise[i]);
    }
    for (; block < part.block_end; block += kLanes) {
      sample_normals<1>(index, block, a.stream.draw, keys, lanes, noise);
      store(out + 4 * block, noise, stop - 4 * block);
    }
  }
}

}  // namespace cdrl::cpu::CDRL_VARIANT
