// The sizes of Winograd's patches, and the layout of their weights and products. Shared by the
// files that pack and place (compiled once) and by the kernels.
#pragma once

#include <cstdint>

#include "common/block.h"

namespace cdrl::cpu {

// Patches that are transformed together. Their transforms and products stay in the L2 cache, and
// their number is a multiple of the widest tile (14 positions).
constexpr int kPatches = 28;

// Number of products of a patch of `side` × `side` outputs.
static constexpr int products_of(int side) { return (side + 2) * (side + 2); }

static inline int patches_along(int length, int side) { return (length + side - 1) / side; }

// Returns the side of a map's patches: 4, or 2 where that takes fewer products. In bfloat16 it is
// 2, because the transforms of larger patches amplify the rounding of inputs and weights.
static inline int patch_side(int height, int width, bool bfloat16) {
  const auto products = [=](int side) {
    return int64_t(products_of(side)) * patches_along(height, side) * patches_along(width, side);
  };
  return bfloat16 || products(2) <= products(4) ? 2 : 4;
}

// Returns the number of positions of a padded plane, [row][column][sample]. With samples innermost,
// a row of all samples is contiguous and taps are constant offsets. One column of zeros is the
// right border of a row and the left border of the next; rows of zeros are above and below. Where
// patches don't divide a side, the plane is extended to what they read.
static inline int64_t padded_positions(int height, int width, int samples, int side) {
  const int64_t rows = int64_t(patches_along(height, side)) * side + 2;
  const int64_t beyond = int64_t(patches_along(width, side)) * side - width;
  return int64_t(samples) * (1 + rows * (width + 1) + beyond);
}

// Blocks of outputs whose products are computed together.
constexpr int kOuts = 2;

// Weights of a pair of blocks are in the order of reading, [product][block of the pair][in
// block][16][16]. A gap after each product keeps the products of one weight from sharing one cache
// set. Returns the distance from one product to the next.
static inline int64_t weights_step(int pair, int64_t in) {
  return (pair * in * kBlock + 2) * kBlock;
}

// Offset of the weights of a product and of block `n` of `outs` blocks of outputs; and the number
// of all weights. In elements.
static inline int64_t weights_at(int side, int product, int n, int outs, int64_t in) {
  const int before = n / kOuts, left = outs - before * kOuts;
  const int pair = left < kOuts ? left : kOuts;
  return before * products_of(side) * weights_step(kOuts, in) + product * weights_step(pair, in) +
         n % kOuts * in * kBlock * kBlock;
}
static inline int64_t weights_count(int side, int outs, int64_t in) {
  const int64_t pairs = outs / kOuts * weights_step(kOuts, in);
  return products_of(side) * (pairs + (outs % kOuts > 0 ? weights_step(outs % kOuts, in) : 0));
}

// Returns the distance from one product to the next, for `blocks` blocks of `patches` patches. It
// is an odd number of cache lines, so that the products of one patch don't share a few cache sets.
static inline int64_t product_step(int64_t blocks, int64_t patches) {
  return (blocks * patches | 1) * kBlock;
}

// Bytes of the workspace of `convolve`, for patches of any side: transforms of `in` blocks and
// products of `kOuts` blocks.
static inline int64_t patch_bytes(int64_t in, bool bfloat16) {
  return products_of(bfloat16 ? 2 : 4) *
         (product_step(in, kPatches) * (bfloat16 ? 2 : 4) + product_step(kOuts, kPatches) * 4);
}

}  // namespace cdrl::cpu
