// The positions of a chunk of samples, and matrix products over them whose epilogue runs while the
// sums are in the L1 cache.
#pragma once

#include "cpu/conv/patches.h"
#include "cpu/conv/tile.h"
#include "cpu/simd/sixteen.h"

namespace {

// The positions of a chunk of samples: flat [row][column][sample], or padded with borders
// (patches.h). Members count positions, of `kBlock` elements each.
struct Grid {
  int height, width, samples;
  int side;               // side of the patches that convolutions use
  int64_t line, count;    // positions of one row and of all rows, without borders
  int64_t pitch, padded;  // the same with borders
  int64_t origin;         // offset of position (0, 0) in the padded layout

  Grid(int height, int width, int samples, int side)
      : height(height),
        width(width),
        samples(samples),
        side(side),
        line(int64_t(width) * samples),
        count(line * height),
        pitch(line + samples),
        padded(cdrl::cpu::padded_positions(height, width, samples, side)),
        origin(samples + pitch) {}

  // Offset, in elements, of block `n` of position (row, x); x counts columns and samples.
  int64_t flat_at(int n, int row, int64_t x) const { return (n * count + row * line + x) * kBlock; }
  int64_t padded_at(int n, int row, int64_t x) const {
    return (n * padded + origin + row * pitch + x) * kBlock;
  }
};

// The place of one sum: its block of outputs, its sample and its offsets in both layouts.
struct Spot {
  int block, sample;
  int64_t flat, padded;  // in elements

  Spot(int n, int sample, int64_t flat, int64_t padded)
      : block(n), sample(sample), flat(flat), padded(padded) {}
  Spot(const Grid& grid, int n, int row, int64_t x)
      : block(n),
        sample(int(x % grid.samples)),
        flat(grid.flat_at(n, row, x)),
        padded(grid.padded_at(n, row, x)) {}

  // Index of its 16 sign bits in an array of uint16.
  int64_t sign_index() const { return flat / kBlock; }
  void next(int samples) {
    flat += kBlock;
    padded += kBlock;
    if (++sample == samples) sample = 0;
  }
};

// Positions cut into tiles whose sizes differ by at most one.
struct Cut {
  int tiles, size, larger;  // the first `larger` tiles have size + 1 positions

  explicit Cut(int64_t positions)
      : tiles(int((positions + kTilePositions - 1) / kTilePositions)),
        size(int(positions / tiles)),
        larger(int(positions % tiles)) {}

  int positions(int tile) const { return size + (tile < larger); }
};

// The inner loop of each tile of a cut.
template <class Type>
class Tiles {
 public:
  Tiles(const Cut& cut, int outs)
      : larger_(cut.larger),
        small_(tile_of<Type>(cut.size, outs)),
        large_(cut.larger > 0 ? tile_of<Type>(cut.size + 1, outs) : small_) {}

  Tile<Type> operator[](int tile) const { return tile < larger_ ? large_ : small_; }

 private:
  int larger_;
  Tile<Type> small_, large_;
};

// Multiplies a matrix with the inputs of each position, in float32, and calls finish(spot, sum) for
// every sum. Outputs are the outer loop, so that their weights stay in cache.
template <class Finish>
void each_sum(const Grid& grid, const float* flat, const Window& window, const float* weights,
              int out, const Finish& finish) {
  const Cut cut(grid.line);
  constexpr int64_t apart = kTilePositions * kBlock;
  alignas(64) float sums[kTileBlocks * apart];
  for (int n = 0; n < out; n += kTileBlocks, weights += kTileBlocks * window.weights()) {
    const int outs = out - n < kTileBlocks ? out - n : kTileBlocks;
    const Tiles<Float32> tiles(cut, outs);
    for (int row = 0; row < grid.height; ++row) {
      int64_t x = 0;
      for (int i = 0; i < cut.tiles; ++i) {
        const int positions = cut.positions(i);
        tiles[i](flat + (row * grid.line + x) * kBlock, window, weights, sums, apart);
        for (int j = 0; j < outs; ++j) {
          Spot spot(grid, n + j, row, x);
          for (int p = 0; p < positions; ++p, spot.next(grid.samples)) {
            finish(spot, Sixteen::load(sums + j * apart + p * kBlock));
          }
        }
        x += positions;
      }
    }
  }
}

// As `each_sum`, for inputs in the flat layout of the grid.
template <class Finish>
void multiply(const Grid& grid, const float* flat, int in, const float* weights, int out,
              const Finish& finish) {
  each_sum(grid, flat, Window{grid.count * kBlock, in}, weights, out, finish);
}

}  // namespace
