// Weights as torch has them, brought into the layout of the inner loop (tile.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace cdrl::cpu {

constexpr int kChannels = 16;  // of a block

inline int in_blocks(int channels) { return (channels + kChannels - 1) / kChannels; }

inline uint16_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return 0x7FC0;
  return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline void put(float* to, float value) { *to = value; }
inline void put(uint16_t* to, float value) { *to = rounded(value); }

// A weight's element of output o, input i and tap t is at out_step o + in_step i + tap_step t.
struct Source {
  const float* weight;
  int outs, ins, taps;
  int64_t out_step, in_step, tap_step;
};

inline Source matrix(const float* weight, int outs, int ins) {
  return {weight, outs, ins, 1, ins, 1, 0};
}
inline Source transposed_matrix(const float* weight, int outs, int ins) {
  return {weight, ins, outs, 1, 1, ins, 0};
}
inline Source convolution(const float* weight, int outs, int ins) {
  return {weight, outs, ins, 9, int64_t(9) * ins, 9, 1};
}
// Outputs and inputs change places, and taps point the other way.
inline Source transposed_convolution(const float* weight, int outs, int ins) {
  return {weight + 8, ins, outs, 9, 9, int64_t(9) * ins, -1};
}

// Elements from one block of outputs to the next.
inline int64_t block_step(const Source& from) {
  return int64_t(in_blocks(from.ins)) * from.taps * kChannels * kChannels;
}

// Blocks of outputs lie `step` elements apart. Padding is zero already and stays so.
template <class Element>
void pack_apart(const Source& from, Element* to, int64_t step) {
  constexpr int depth = 4 / int(sizeof(Element));
  for (int o = 0; o < from.outs; o += kChannels, to += step) {
    const int outs = std::min(kChannels, from.outs - o);
    Element* tap = to;
    for (int i = 0; i < from.ins; i += kChannels) {
      const int ins = std::min(kChannels, from.ins - i);
      const float* block = from.weight + o * from.out_step + i * from.in_step;
      for (int t = 0; t < from.taps; ++t, tap += kChannels * kChannels) {
        for (int k = 0; k < ins; ++k) {
          const float* column = block + k * from.in_step + t * from.tap_step;
          Element* place = tap + k / depth * depth * kChannels + k % depth;
          for (int n = 0; n < outs; ++n) put(place + n * depth, column[n * from.out_step]);
        }
      }
    }
  }
}

inline void pack(const Source& from, void* to, bool bfloat16) {
  if (bfloat16) {
    pack_apart(from, static_cast<uint16_t*>(to), block_step(from));
  } else {
    pack_apart(from, static_cast<float*>(to), block_step(from));
  }
}

inline void copy(const float* from, float* to, int count) {
  std::memcpy(to, from, size_t(count) * sizeof(float));
}

}  // namespace cdrl::cpu
