// Convolutions over a chunk of samples, with what follows done while sums are in the nearest cache.
#pragma once

#include "cpu/resnet_network.h"
#include "cpu/sixteen.h"
#include "cpu/tile.h"

namespace {

// Positions of a chunk of samples, flat [row][column][sample] or with borders (resnet_network.h).
// Everything is in positions, of `kBlock` numbers each.
struct Grid {
  int height, width, samples;
  int64_t line, count;    // of a row and of all rows, without borders
  int64_t pitch, padded;  // the same with borders
  int64_t origin;         // of the first position, among those with borders
  int64_t taps[9];        // in elements

  Grid(int height, int width, int samples)
      : height(height),
        width(width),
        samples(samples),
        line(int64_t(width) * samples),
        count(line * height),
        pitch(line + samples),
        padded(cdrl::cpu::padded_positions(height, width, samples)),
        origin(samples + pitch) {
    for (int t = 0; t < 9; ++t) {
      taps[t] = ((t / 3 - 1) * pitch + (t % 3 - 1) * samples) * kBlock;
    }
  }

  // Where block `n` of position (row, x) is, x counting columns and samples; in elements.
  int64_t flat_at(int n, int row, int64_t x) const {
    return (n * count + row * line + x) * kBlock;
  }
  int64_t padded_at(int n, int row, int64_t x) const {
    return (n * padded + origin + row * pitch + x) * kBlock;
  }
};

// Where a sum belongs.
struct Spot {
  int block, sample;
  int64_t flat, padded;  // in elements

  Spot(const Grid& grid, int n, int row, int64_t x)
      : block(n),
        sample(int(x % grid.samples)),
        flat(grid.flat_at(n, row, x)),
        padded(grid.padded_at(n, row, x)) {}

  int64_t mask() const { return flat / kBlock; }
  void next(int samples) {
    flat += kBlock;
    padded += kBlock;
    if (++sample == samples) sample = 0;
  }
};

// A row cut into tiles whose sizes differ by one at most.
struct Cut {
  int tiles, size, larger;  // the first `larger` have one position more

  explicit Cut(int64_t line)
      : tiles(int((line + kTilePositions - 1) / kTilePositions)),
        size(int(line / tiles)),
        larger(int(line % tiles)) {}
};

// Calls finish(spot, sum) for every sum of all positions; `in` is the first position, and rows of
// the input lie `pitch` positions apart. Outputs are the outer loop: their weights stay in cache.
template <class Type, class Finish>
void each_sum(const Grid& grid, const typename Type::Element* in, int64_t pitch,
              const Window& window, const void* packed, int out, const Finish& finish) {
  const auto* weights = static_cast<const typename Type::Element*>(packed);
  const Cut cut(grid.line);
  alignas(64) float sums[kTilePositions * kTileBlocks * kBlock];
  for (int n = 0; n < out; n += kTileBlocks, weights += kTileBlocks * window.weights()) {
    const int outs = out - n < kTileBlocks ? out - n : kTileBlocks;
    const auto small = tile_of<Type>(cut.size, outs);
    const auto large = cut.larger > 0 ? tile_of<Type>(cut.size + 1, outs) : small;
    for (int row = 0; row < grid.height; ++row) {
      int64_t x = 0;
      for (int i = 0; i < cut.tiles; ++i) {
        const int positions = cut.size + (i < cut.larger);
        const auto sum = i < cut.larger ? large : small;
        sum(in + (row * pitch + x) * kBlock, window, weights, sums);
        for (int j = 0; j < outs; ++j) {
          Spot spot(grid, n + j, row, x);
          for (int p = 0; p < positions; ++p, spot.next(grid.samples)) {
            finish(spot, Sixteen::load(sums + (p * outs + j) * kBlock));
          }
        }
        x += positions;
      }
    }
  }
}

// 3×3 with zero borders, from `in` blocks of channels of a padded plane to `out`.
template <class Type, class Finish>
void convolve(const Grid& grid, const typename Type::Element* plane, int in, const void* weights,
              int out, const Finish& finish) {
  const Window window{grid.padded * kBlock, in, grid.taps, 9};
  each_sum<Type>(grid, plane + grid.origin * kBlock, grid.pitch, window, weights, out, finish);
}

// A matrix times each position of a flat array, in float32.
template <class Finish>
void multiply(const Grid& grid, const float* flat, int in, const void* weights, int out,
              const Finish& finish) {
  const int64_t here = 0;
  const Window window{grid.count * kBlock, in, &here, 1};
  each_sum<Float32>(grid, flat, grid.line, window, weights, out, finish);
}

}  // namespace
