// Winograd's 3×3 convolutions, in patches of outputs (transforms.h). Where patches don't divide a
// side, the last ones compute outputs that are dropped. Inputs beyond the borders are zeros or
// belong to the same sample, and their contributions to the other outputs cancel.
#pragma once

#include <type_traits>

#include "cpu/conv/grid.h"
#include "cpu/conv/transforms.h"

namespace {

using cdrl::cpu::kOuts;
using cdrl::cpu::kPatches;
using cdrl::cpu::product_step;
using cdrl::cpu::weights_at;

static_assert(kOuts % kTileBlocks == 0);

// Up to kPatches consecutive patches in the order [patch row][patch column][sample].
template <class Rule>
struct Patches {
  const Grid& grid;
  int count;
  int64_t padded[kPatches], flat[kPatches];  // offsets of each patch's first output, in elements
  int sample[kPatches];
  int down[kPatches], across[kPatches];  // rows and columns of outputs inside the map

  Patches(const Grid& grid, int64_t first, int count) : grid(grid), count(count) {
    constexpr int side = Rule::kOut;
    const int64_t line = int64_t(cdrl::cpu::patches_along(grid.width, side)) * grid.samples;
    int row = int(first / line) * side, column = int(first % line / grid.samples) * side;
    int s = int(first % grid.samples);
    for (int p = 0; p < count; ++p) {
      const int64_t x = int64_t(column) * grid.samples + s;
      padded[p] = grid.padded_at(0, row, x);
      flat[p] = grid.flat_at(0, row, x);
      sample[p] = s;
      down[p] = grid.height - row < side ? grid.height - row : side;
      across[p] = grid.width - column < side ? grid.width - column : side;
      if (++s < grid.samples) continue;
      s = 0;
      if ((column += side) < grid.width) continue;
      column = 0;
      row += side;
    }
  }

  // Writes the transformed inputs of `in` blocks: [product][block][patch].
  template <class Element>
  void transform(const Element* plane, int in, Element* out, int64_t step) const {
    const int64_t pitch = grid.pitch * kBlock, column = int64_t(grid.samples) * kBlock;
    const Element* corner = plane - pitch - column;
    for (int n = 0; n < in; ++n, corner += grid.padded * kBlock) {
      for (int p = 0; p < count; ++p, out += kBlock) {
        const Element* d = corner + padded[p];
        Rule::inputs([=](int i, int j) { return d + i * pitch + j * column; }, out, step);
      }
    }
  }

  // Calls finish(spot, sum) for the outputs of block `n`, from its products, which are `step`
  // apart.
  template <class Finish>
  void finish(int n, const float* products, int64_t step, const Finish& finish) const {
    const int64_t column = int64_t(grid.samples) * kBlock;
    const int64_t line = grid.line * kBlock, pitch = grid.pitch * kBlock;
    const int64_t plain = n * grid.count * kBlock, bordered = n * grid.padded * kBlock;
    for (int p = 0; p < count; ++p, products += kBlock) {
      Sixteen sums[Rule::kOut][Rule::kOut];
      Rule::outputs(products, step, sums);
      for (int i = 0; i < down[p]; ++i) {
        for (int j = 0; j < across[p]; ++j) {
          finish(Spot(n, sample[p], plain + flat[p] + i * line + j * column,
                      bordered + padded[p] + i * pitch + j * column),
                 sums[i][j]);
        }
      }
    }
  }
};

// Multiplies the transforms of all patches with the weights of up to `kOuts` blocks of outputs. The
// products are [product][output block][patch].
template <class Rule, class Type>
void multiply_patches(const typename Type::Element* transforms, int in, int count,
                      const typename Type::Element* weights, int outs, float* to) {
  const int64_t block = int64_t(count) * kBlock, square = int64_t(in) * kBlock * kBlock;
  const int64_t in_step = product_step(in, count), out_step = product_step(outs, count);
  const int64_t step = cdrl::cpu::weights_step(outs, in);
  const Window window{block, in};
  const Cut cut(count);
  const Tiles<Type> tiles(cut, outs < kTileBlocks ? outs : kTileBlocks);
  for (int i = 0; i < Rule::kProducts; ++i) {
    for (int n = 0; n < outs; n += kTileBlocks) {
      int64_t x = 0;
      for (int t = 0; t < cut.tiles; ++t) {
        tiles[t](transforms + x, window, weights + n * square, to + n * block + x, block);
        x += cut.positions(t) * kBlock;
      }
    }
    transforms += in_step;
    weights += step;
    to += out_step;
  }
}

// `convolve` with patches of one size.
template <class Rule, class Type, class Finish>
void convolve_by(const Grid& grid, const typename Type::Element* plane, int in,
                 const typename Type::Element* weights, int out, void* workspace,
                 const Finish& finish) {
  float* products = static_cast<float*>(workspace);
  auto* transforms = reinterpret_cast<typename Type::Element*>(
      products + Rule::kProducts * product_step(kOuts, kPatches));
  const int64_t all = int64_t(cdrl::cpu::patches_along(grid.height, Rule::kOut)) *
                      cdrl::cpu::patches_along(grid.width, Rule::kOut) * grid.samples;
  const int64_t parts = (all + kPatches - 1) / kPatches;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = all * part / parts;
    const Patches<Rule> patches(grid, first, int(all * (part + 1) / parts - first));
    patches.transform(plane, in, transforms, product_step(in, patches.count));
    for (int n = 0; n < out; n += kOuts) {
      const int outs = out - n < kOuts ? out - n : kOuts;
      multiply_patches<Rule, Type>(transforms, in, patches.count,
                                   weights + weights_at(Rule::kOut, 0, n, out, in), outs, products);
      for (int j = 0; j < outs; ++j) {
        patches.finish(n + j, products + j * patches.count * kBlock,
                       product_step(outs, patches.count), finish);
      }
    }
  }
}

// A 3×3 convolution with zero borders, from `in` blocks of channels of a padded plane to `out`
// blocks. Calls finish(spot, sum) for every sum. `packed` has the layout of `weights_at` for
// patches of the grid's side; `workspace` has `patch_bytes` bytes.
template <class Type, class Finish>
void convolve(const Grid& grid, const typename Type::Element* plane, int in, const void* packed,
              int out, void* workspace, const Finish& finish) {
  const auto* weights = static_cast<const typename Type::Element*>(packed);
  if constexpr (std::is_same_v<Type, Float32>) {
    if (grid.side == ByFour::kOut) {
      return convolve_by<ByFour, Type>(grid, plane, in, weights, out, workspace, finish);
    }
  }
  convolve_by<ByTwo, Type>(grid, plane, in, weights, out, workspace, finish);
}

}  // namespace
