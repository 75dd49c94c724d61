// im2col: a 3×3 convolution from or to the few channels of an image as a matrix product. Entry
// 9 channel + tap of a position's vector is its neighbour at that tap.
#pragma once

#include "cpu/conv/grid.h"

namespace {

// Calls body(k, row, begin, end, offset) for every contiguous run: entry k of positions (row,
// begin) to (row, end - 1) is the pixels from `offset` on.
template <class Body>
void each_run(int height, int width, int channels, const Body& body) {
  for (int k = 0; k < 9 * channels; ++k) {
    const int down = k % 9 / 3 - 1, right = k % 3 - 1;
    const int begin = right < 0 ? 1 : 0, end = width - (right > 0);
    for (int row = down < 0 ? 1 : 0; row < height - (down > 0); ++row) {
      body(k, row, begin, end, (int64_t(k / 9) * height + row + down) * width + begin + right);
    }
  }
}

// Writes the vectors of all positions, [block][position][16].
inline void fill_columns(const Grid& grid, const float* images, int channels, float* columns) {
  const int64_t blocks = blocks_of(9 * channels);
  const int64_t image = int64_t(channels) * grid.height * grid.width;
  std::memset(columns, 0, size_t(blocks * grid.count) * kBlock * sizeof(float));
  each_run(grid.height, grid.width, channels,
           [&](int k, int row, int begin, int end, int64_t offset) {
             const float* from = images + offset;
             float* to = columns + grid.flat_at(k / kBlock, row, begin * grid.samples);
             for (int column = begin; column < end; ++column, ++from) {
               for (int s = 0; s < grid.samples; ++s, to += kBlock) {
                 to[k % kBlock] = from[s * image];
               }
             }
           });
}

// The transpose of `fill_columns`: adds to every pixel the entries that refer to it, always in the
// same order.
inline void gather_columns(const Grid& grid, const float* columns, int channels, float* images) {
  const int64_t image = int64_t(channels) * grid.height * grid.width;
  each_run(grid.height, grid.width, channels,
           [&](int k, int row, int begin, int end, int64_t offset) {
             float* to = images + offset;
             const float* from = columns + grid.flat_at(k / kBlock, row, begin * grid.samples);
             for (int column = begin; column < end; ++column, ++to) {
               for (int s = 0; s < grid.samples; ++s, from += kBlock) {
                 to[s * image] += from[k % kBlock];
               }
             }
           });
}

}  // namespace
