// 3×3 convolutions with fewer products: 2×2 outputs from 16 products of transforms where plain sums
// take 36 (Winograd's F(2×2, 3×3)). For maps of even height and width, in float32.
//
//   y = Aᵀ [Σ over channels (G w Gᵀ) ⊙ (Bᵀ d B)] A,   d being the 4×4 inputs around 2×2 outputs
//
// Bᵀ and Aᵀ hold 0 and ±1 alone; G w Gᵀ is taken once, when weights are packed.
#pragma once

#include "cpu/conv3x3.h"
#include "cpu/unet_network.h"

namespace {

constexpr int kProducts = 16;

// Bᵀ times a column.
inline void transform_in(const Sixteen* d, Sixteen* out) {
  out[0] = d[0].minus(d[2]);
  out[1] = d[1].plus(d[2]);
  out[2] = d[2].minus(d[1]);
  out[3] = d[1].minus(d[3]);
}

// Aᵀ times a column.
inline void transform_out(const Sixteen* m, Sixteen* out) {
  out[0] = m[0].plus(m[1]).plus(m[2]);
  out[1] = m[1].minus(m[2]).minus(m[3]);
}

// Bᵀ d B of the 4×4 positions from `d` on, to `out` with `step` from one product to the next.
inline void transform_patch(const float* d, int64_t pitch, int64_t column, float* out,
                            int64_t step) {
  Sixteen first[4][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Sixteen values[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) values[i] = Sixteen::load(d + i * pitch + j * column);
    transform_in(values, first[j]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const Sixteen values[4] = {first[0][i], first[1][i], first[2][i], first[3][i]};
    Sixteen row[4];
    transform_in(values, row);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) row[j].put(out + (4 * i + j) * step);
  }
}

// Aᵀ m A of the products from `m` on, `step` apart.
inline void transform_products(const float* m, int64_t step, Sixteen (*out)[2]) {
  Sixteen first[4][2];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    Sixteen values[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) values[i] = Sixteen::load(m + (4 * i + j) * step);
    transform_out(values, first[j]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const Sixteen values[4] = {first[0][i], first[1][i], first[2][i], first[3][i]};
    transform_out(values, out[i]);
  }
}

// Patches of a few rows, one after the other: [patch row][patch column][sample].
struct Patches {
  const Grid& grid;
  int first, rows;  // of patches
  int64_t line, count;

  Patches(const Grid& grid, int first, int rows)
      : grid(grid),
        first(first),
        rows(rows),
        line(grid.line / 2),
        count(rows * line) {}

  void transform(const float* plane, int in, float* out) const {
    const int64_t column = grid.samples * kBlock;
    for (int n = 0; n < in; ++n) {
      float* to = out + n * count * kBlock;
      for (int row = first; row < first + rows; ++row) {
        const float* from = plane + grid.padded_at(n, 2 * row - 1, -grid.samples);
        for (int x = 0; x < grid.width; x += 2, from += column) {
          for (int s = 0; s < grid.samples; ++s, from += kBlock, to += kBlock) {
            transform_patch(from, grid.pitch * kBlock, column, to, in * count * kBlock);
          }
        }
      }
    }
  }

  template <class Finish>
  void finish(const float* products, int out, const Finish& finish) const {
    for (int n = 0; n < out; ++n) {
      const float* from = products + n * count * kBlock;
      for (int row = first; row < first + rows; ++row) {
        Spot spot(grid, n, 2 * row, 0);
        for (int x = 0; x < grid.width; x += 2) {
          for (int s = 0; s < grid.samples; ++s, spot.next(grid.samples), from += kBlock) {
            Sixteen sums[2][2];
            transform_products(from, out * count * kBlock, sums);
            for (int i = 0; i < 4; ++i) finish(moved(spot, i / 2, i % 2), sums[i / 2][i % 2]);
          }
          spot = moved(spot, 0, 1);
        }
      }
    }
  }

  Spot moved(Spot spot, int down, int right) const {
    const int64_t x = right * int64_t(grid.samples);
    spot.flat += (down * grid.line + x) * kBlock;
    spot.padded += (down * grid.pitch + x) * kBlock;
    return spot;
  }
};

// Like `convolve`; weights are [product][out block][in block][16][16].
template <class Finish>
void convolve_patches(const Grid& grid, const float* plane, int in, const float* weights, int out,
                      float* memory, const Finish& finish) {
  const int step = cdrl::cpu::patch_rows(grid.width, grid.samples), all = grid.height / 2;
  const int64_t here = 0;
  for (int row = 0; row < all; row += step) {
    const Patches patches(grid, row, row + step < all ? step : all - row);
    const int64_t count = patches.count;
    const Grid line(1, int(count), 1);
    float* products = memory + kProducts * in * count * kBlock;
    patches.transform(plane, in, memory);
    for (int i = 0; i < kProducts; ++i) {
      float* to = products + i * out * count * kBlock;
      each_sum<Float32>(line, memory + i * in * count * kBlock, count,
                        Window{count * kBlock, in, &here, 1},
                        weights + int64_t(i) * out * in * kBlock * kBlock, out,
                        [=](const Spot& spot, Sixteen sum) { sum.put(to + spot.flat); });
    }
    patches.finish(products, out, finish);
  }
}

}  // namespace
