// Packs weights from torch's layout into that of the inner loop (tile.h). Its functions have
// external linkage, so no *_kernel.cpp may include it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/conv/patches.h"

namespace cdrl::cpu {

inline void put(float* to, float value) { *to = value; }
inline void put(uint16_t* to, float value) { *to = to_bfloat16(value); }

// A weight in torch's layout: output o, input i, tap t is at out_step o + in_step i + tap_step t.
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
// Swaps outputs and inputs, and reverses the taps.
inline Source transposed_convolution(const float* weight, int outs, int ins) {
  return {weight + 8, ins, outs, 9, int64_t(9) * ins, -1};
}

// The place of the 16 weights from input `i` to a block of outputs, which are `kDepth` elements
// apart.
template <class Element>
struct Place {
  static constexpr int kDepth = 4 / int(sizeof(Element));

  static Element* of(Element* block, int i) {
    return block + i / kBlock * kBlock * kBlock + i % kBlock / kDepth * kDepth * kBlock +
           i % kDepth;
  }
};

// Writes the weights and leaves the padding, which is zero from the allocation.
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

// G times a column of three (transforms.h), for 16 weights at a time, which compilers vectorise.
template <int side>
void transform_weights(const double (*w)[kBlock], int step, double (*g)[kBlock], int to_step) {
  constexpr double a = 0.70710678118654752, b = 1.41421356237309505;
  for (int n = 0; n < kBlock; ++n) {
    const double first = w[0][n], inner = w[step][n], last = w[2 * step][n];
    g[0][n] = first;
    if constexpr (side == 2) {
      g[to_step][n] = 0.5 * (first + last + inner);
      g[2 * to_step][n] = 0.5 * (first + last - inner);
    } else {
      g[to_step][n] = (first + 0.5 * last + a * inner) / -1.5;
      g[2 * to_step][n] = (first + 0.5 * last - a * inner) / -1.5;
      g[3 * to_step][n] = (first + 2.0 * last + b * inner) / 6.0;
      g[4 * to_step][n] = (first + 2.0 * last - b * inner) / 6.0;
    }
    g[(side + 1) * to_step][n] = last;
  }
}

// Writes G w Gᵀ of every 3×3 weight, rounded once, in the layout of `weights_at` for `in` blocks of
// inputs. `in` may be more than this weight's: then `to` points at its first block.
template <int side, class Element>
void pack_products(const Source& from, Element* to, int64_t in) {
  constexpr int count = side + 2;
  using At = Place<Element>;
  for (int o = 0; o < from.outs; o += kBlock) {
    const int outs = std::min(kBlock, from.outs - o);
    for (int i = 0; i < from.ins; ++i) {
      double w[9][kBlock] = {}, rows[3 * count][kBlock], products[count * count][kBlock];
      for (int n = 0; n < outs; ++n) {
        const float* taps = from.weight + (o + n) * from.out_step + i * from.in_step;
        for (int t = 0; t < 9; ++t) w[t][n] = taps[t * from.tap_step];
      }
      for (int c = 0; c < 3; ++c) transform_weights<side>(w + c, 3, rows + c, 3);
      for (int r = 0; r < count; ++r) {
        transform_weights<side>(rows + 3 * r, 1, products + count * r, 1);
      }
      for (int t = 0; t < count * count; ++t) {
        Element* place = to + weights_at(side, t, o / kBlock, blocks_of(from.outs), in);
        place = At::of(place, i);
        for (int n = 0; n < outs; ++n) put(place + n * At::kDepth, float(products[t][n]));
      }
    }
  }
}

// The same for float32 and a side known at run time.
inline void pack_products(const Source& from, float* to, int64_t in, int side) {
  if (side == 4) {
    pack_products<4>(from, to, in);
  } else {
    pack_products<2>(from, to, in);
  }
}

inline void pack_convolution(const Source& from, void* to, bool bfloat16, int side) {
  const int in = blocks_of(from.ins);
  if (bfloat16) {
    pack_products<2>(from, static_cast<uint16_t*>(to), in);
  } else {
    pack_products(from, static_cast<float*>(to), in, side);
  }
}

inline void copy(const float* from, float* to, int count) {
  std::memcpy(to, from, size_t(count) * sizeof(float));
}

}  // namespace cdrl::cpu
