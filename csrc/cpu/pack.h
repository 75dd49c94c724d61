// Weights as torch has them, brought into the layout of the inner loop (tile.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/block.h"

namespace cdrl::cpu {

inline void put(float* to, float value) { *to = value; }
inline void put(uint16_t* to, float value) { *to = to_bfloat16(value); }

// A weight's element of output o, input i and tap t is at out_step o + in_step i + tap_step t.
struct Source {
  const float* weight;
  int outs, ins;
  int64_t out_step, in_step, tap_step;
};

inline Source matrix(const float* weight, int outs, int ins) {
  return {weight, outs, ins, ins, 1, 0};
}
inline Source transposed_matrix(const float* weight, int outs, int ins) {
  return {weight, ins, outs, 1, ins, 0};
}
inline Source convolution(const float* weight, int outs, int ins) {
  return {weight, outs, ins, int64_t(9) * ins, 9, 1};
}
// Outputs and inputs change places, and taps point the other way.
inline Source transposed_convolution(const float* weight, int outs, int ins) {
  return {weight + 8, ins, outs, 9, int64_t(9) * ins, -1};
}

// Where the 16 outputs of a block meet input `i`; from one output to the next it is `kDepth` elements.
template <class Element>
struct Place {
  static constexpr int kDepth = 4 / int(sizeof(Element));

  static Element* of(Element* block, int i) {
    return block + i / kBlock * kBlock * kBlock +
           i % kBlock / kDepth * kDepth * kBlock + i % kDepth;
  }
};

// Padding is zero already and stays so.
template <class Element>
void pack_matrix(const Source& from, Element* to) {
  using At = Place<Element>;
  for (int o = 0; o < from.outs; o += kBlock) {
    const int outs = std::min(kBlock, from.outs - o);
    for (int i = 0; i < from.ins; ++i) {
      const float* column = from.weight + o * from.out_step + i * from.in_step;
      Element* place = At::of(to, i);
      for (int n = 0; n < outs; ++n) put(place + n * At::kDepth, column[n * from.out_step]);
    }
    to += int64_t(blocks_of(from.ins)) * kBlock * kBlock;
  }
}

inline void pack(const Source& from, void* to, bool bfloat16) {
  if (bfloat16) {
    pack_matrix(from, static_cast<uint16_t*>(to));
  } else {
    pack_matrix(from, static_cast<float*>(to));
  }
}

// G times a column of three, of 16 weights at a time, which compilers vectorise.
inline void transform_weights(const double (*w)[kBlock], int step, double (*g)[kBlock],
                              int to_step) {
  for (int n = 0; n < kBlock; ++n) {
    const double outer = w[0][n] + w[2 * step][n], inner = w[step][n];
    g[0][n] = w[0][n];
    g[to_step][n] = 0.5 * (outer + inner);
    g[2 * to_step][n] = 0.5 * (outer - inner);
    g[3 * to_step][n] = w[2 * step][n];
  }
}

// G w Gᵀ of every 3×3 weight (see winograd.h), rounded once: a matrix for each of 16 products, `step`
// elements apart, and in it blocks of outputs `block_step` apart.
template <class Element>
void pack_products(const Source& from, Element* to, int64_t step, int64_t block_step) {
  using At = Place<Element>;
  for (int o = 0; o < from.outs; o += kBlock, to += block_step) {
    const int outs = std::min(kBlock, from.outs - o);
    for (int i = 0; i < from.ins; ++i) {
      double w[9][kBlock] = {}, rows[12][kBlock], products[16][kBlock];
      for (int n = 0; n < outs; ++n) {
        const float* taps = from.weight + (o + n) * from.out_step + i * from.in_step;
        for (int t = 0; t < 9; ++t) w[t][n] = taps[t * from.tap_step];
      }
      for (int c = 0; c < 3; ++c) transform_weights(w + c, 3, rows + c, 3);
      for (int r = 0; r < 4; ++r) transform_weights(rows + 3 * r, 1, products + 4 * r, 1);
      Element* place = At::of(to, i);
      for (int t = 0; t < 16; ++t, place += step) {
        for (int n = 0; n < outs; ++n) put(place + n * At::kDepth, float(products[t][n]));
      }
    }
  }
}

inline void pack_convolution(const Source& from, void* to, bool bfloat16) {
  const int64_t block = int64_t(blocks_of(from.ins)) * kBlock * kBlock;
  const int64_t step = blocks_of(from.outs) * block;
  if (bfloat16) {
    pack_products(from, static_cast<uint16_t*>(to), step, block);
  } else {
    pack_products(from, static_cast<float*>(to), step, block);
  }
}

inline void copy(const float* from, float* to, int count) {
  std::memcpy(to, from, size_t(count) * sizeof(float));
}

}  // namespace cdrl::cpu
