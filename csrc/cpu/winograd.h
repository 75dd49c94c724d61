// 3×3 convolutions with fewer products: 2×2 outputs from 16 products of transforms where plain sums
// take 36 (Winograd's F(2×2, 3×3)).
//
//   y = Aᵀ [Σ over channels (G w Gᵀ) ⊙ (Bᵀ d B)] A,   d being the 4×4 inputs around 2×2 outputs
//
// Bᵀ and Aᵀ hold 0 and ±1 alone; G w Gᵀ is taken once, when weights are packed. Where a side is odd,
// the last patches have outputs that nobody asked for; inputs beyond the borders reach only those.
#pragma once

#include "cpu/grid.h"

namespace {

// Without vector registers a transform is a great deal of code, of which one copy is enough.
#if defined(__AVX2__)
#define CDRL_TRANSFORM inline
#else
#define CDRL_TRANSFORM __attribute__((noinline))
#endif

using cdrl::cpu::kPatches;
using cdrl::cpu::kProducts;

// Row i of Bᵀ times a column.
template <int i>
inline Sixteen in_row(const Sixteen& a, const Sixteen& b, const Sixteen& c, const Sixteen& d) {
  if constexpr (i == 0) return a.minus(c);
  if constexpr (i == 1) return b.plus(c);
  if constexpr (i == 2) return c.minus(b);
  return b.minus(d);
}

// Row i of Aᵀ times a column.
template <int i>
inline Sixteen out_row(const Sixteen& a, const Sixteen& b, const Sixteen& c, const Sixteen& d) {
  return i == 0 ? a.plus(b).plus(c) : b.minus(c).minus(d);
}

// Row i of Bᵀ d B. Rows one by one, and inputs loaded for each: few registers serve, and the columns
// that a row doesn't need are not loaded.
template <int i, class Load, class Element>
inline void transform_row(const Load& load, Element* out, int64_t step) {
  Sixteen row[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) row[j] = in_row<i>(load(0, j), load(1, j), load(2, j), load(3, j));
  in_row<0>(row[0], row[1], row[2], row[3]).put(out + 4 * i * step);
  in_row<1>(row[0], row[1], row[2], row[3]).put(out + (4 * i + 1) * step);
  in_row<2>(row[0], row[1], row[2], row[3]).put(out + (4 * i + 2) * step);
  in_row<3>(row[0], row[1], row[2], row[3]).put(out + (4 * i + 3) * step);
}

// Bᵀ d B of 4×4 positions, load(row, column) being one's sixteen channels, to `out` with `step` from
// one product to the next.
template <class Load, class Element>
CDRL_TRANSFORM void transform_patch(const Load& load, Element* out, int64_t step) {
  transform_row<0>(load, out, step);
  transform_row<1>(load, out, step);
  transform_row<2>(load, out, step);
  transform_row<3>(load, out, step);
}

// Row i of Aᵀ m A.
template <int i>
inline void transform_products_row(const float* m, int64_t step, Sixteen* out) {
  Sixteen row[4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const float* column = m + j * step;
    row[j] = out_row<i>(Sixteen::load(column), Sixteen::load(column + 4 * step),
                        Sixteen::load(column + 8 * step), Sixteen::load(column + 12 * step));
  }
  out[0] = out_row<0>(row[0], row[1], row[2], row[3]);
  out[1] = out_row<1>(row[0], row[1], row[2], row[3]);
}

// Aᵀ m A of the products from `m` on, `step` apart.
CDRL_TRANSFORM void transform_products(const float* m, int64_t step, Sixteen (*out)[2]) {
  transform_products_row<0>(m, step, out[0]);
  transform_products_row<1>(m, step, out[1]);
}

// A few patches, one after the other in the order [patch row][patch column][sample].
struct Patches {
  const Grid& grid;
  int count;
  int64_t padded[kPatches], flat[kPatches];  // of each one's first output, in elements
  int sample[kPatches];
  bool right[kPatches], below[kPatches];  // whether there are outputs

  Patches(const Grid& grid, int64_t first, int count) : grid(grid), count(count) {
    const int64_t line = int64_t((grid.width + 1) / 2) * grid.samples;
    int row = int(first / line) * 2, column = int(first % line / grid.samples) * 2;
    int s = int(first % grid.samples);
    for (int p = 0; p < count; ++p) {
      const int64_t x = int64_t(column) * grid.samples + s;
      padded[p] = grid.padded_at(0, row, x);
      flat[p] = grid.flat_at(0, row, x);
      sample[p] = s;
      right[p] = column + 1 < grid.width;
      below[p] = row + 1 < grid.height;
      if (++s < grid.samples) continue;
      s = 0;
      if ((column += 2) < grid.width) continue;
      column = 0;
      row += 2;
    }
  }

  template <class Element>
  void transform(const Element* plane, int in, Element* out) const {
    const int64_t pitch = grid.pitch * kBlock, column = int64_t(grid.samples) * kBlock;
    const Element* corner = plane - pitch - column;
    for (int n = 0; n < in; ++n, corner += grid.padded * kBlock) {
      for (int p = 0; p < count; ++p, out += kBlock) {
        const Element* d = corner + padded[p];
        transform_patch([=](int i, int j) { return Sixteen::load(d + i * pitch + j * column); },
                        out, int64_t(in) * count * kBlock);
      }
    }
  }

  // Outputs of block `n`, from its products, which are `step` apart.
  template <class Finish>
  void finish(int n, const float* products, int64_t step, const Finish& finish) const {
    const int64_t column = int64_t(grid.samples) * kBlock;
    const int64_t line = grid.line * kBlock, pitch = grid.pitch * kBlock;
    const int64_t plain = n * grid.count * kBlock, bordered = n * grid.padded * kBlock;
    for (int p = 0; p < count; ++p, products += kBlock) {
      Sixteen sums[2][2];
      transform_products(products, step, sums);
      for (int i = 0; i < 2; ++i) {
        if (i > 0 && !below[p]) break;
        for (int j = 0; j < 2; ++j) {
          if (j > 0 && !right[p]) break;
          finish(Spot(n, sample[p], plain + flat[p] + i * line + j * column,
                      bordered + padded[p] + i * pitch + j * column),
                 sums[i][j]);
        }
      }
    }
  }
};

// The products of all patches with the weights of some outputs: [product][output block][patch].
template <class Type>
void multiply_patches(const typename Type::Element* transforms, int in, int count,
                      const typename Type::Element* weights, int64_t step, int outs, float* to) {
  const int64_t block = int64_t(count) * kBlock;
  const Window window{block, in};
  const Cut cut(count);
  const Tiles<Type> tiles(cut, outs);
  for (int i = 0; i < kProducts; ++i) {
    int64_t x = 0;
    for (int t = 0; t < cut.tiles; ++t) {
      tiles[t](transforms + x, window, weights, to + x, block);
      x += cut.positions(t) * kBlock;
    }
    transforms += in * block;
    weights += step;
    to += outs * block;
  }
}

// A 3×3 convolution with zero borders, from `in` blocks of channels of a padded plane to `out`: calls
// finish(spot, sum) for every sum. Weights are [product][out block][in block][16][16]; `memory` is as
// large as `patch_bytes` says.
template <class Type, class Finish>
void convolve(const Grid& grid, const typename Type::Element* plane, int in, const void* packed,
              int out, void* memory, const Finish& finish) {
  using Element = typename Type::Element;
  float* products = static_cast<float*>(memory);
  auto* transforms =
      reinterpret_cast<Element*>(products + kProducts * kTileBlocks * kPatches * kBlock);
  const auto* weights = static_cast<const Element*>(packed);
  const int64_t square = int64_t(in) * kBlock * kBlock;
  const int64_t all = int64_t((grid.height + 1) / 2) * ((grid.width + 1) / 2) * grid.samples;
  const int64_t parts = (all + kPatches - 1) / kPatches;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = all * part / parts;
    const Patches patches(grid, first, int(all * (part + 1) / parts - first));
    patches.transform(plane, in, transforms);
    for (int n = 0; n < out; n += kTileBlocks) {
      const int outs = out - n < kTileBlocks ? out - n : kTileBlocks;
      multiply_patches<Type>(transforms, in, patches.count, weights + n * square, out * square,
                             outs, products);
      for (int j = 0; j < outs; ++j) {
        patches.finish(n + j, products + j * patches.count * kBlock,
                       int64_t(outs) * patches.count * kBlock, finish);
      }
    }
  }
}

}  // namespace
