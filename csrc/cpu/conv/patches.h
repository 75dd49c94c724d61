// How 3×3 convolutions are cut into patches of outputs that take fewer products than plain sums
// (winograd.h): what plans and code compiled for one instruction set share.
#pragma once

#include <cstdint>

#include "common/block.h"

namespace cdrl::cpu {

// Patches that are transformed together: their transforms and products stay in the nearer caches, and
// whole rounds of the widest inner loop serve them.
constexpr int kPatches = 28;

// Products that a patch of `side` × `side` outputs takes.
static constexpr int products_of(int side) { return (side + 2) * (side + 2); }

static inline int patches_along(int length, int side) { return (length + side - 1) / side; }

// The side of a map's patches: 4, or 2 where that takes fewer products; and in bfloat16, since larger
// patches multiply the rounding of what is transformed.
static inline int patch_side(int height, int width, bool bfloat16) {
  const auto products = [=](int side) {
    return int64_t(products_of(side)) * patches_along(height, side) * patches_along(width, side);
  };
  return bfloat16 || products(2) <= products(4) ? 2 : 4;
}

// A padded plane is [row][column][sample]: with samples innermost, a row of all of them is one run
// of positions, and taps are constant offsets. One column of zeros serves as the right border of a
// row and the left border of the next; a row of zeros stands above and below. Patches reach further
// where they don't divide a side.
static inline int64_t padded_positions(int height, int width, int samples, int side) {
  const int64_t rows = int64_t(patches_along(height, side)) * side + 2;
  const int64_t beyond = int64_t(patches_along(width, side)) * side - width;
  return int64_t(samples) * (1 + rows * (width + 1) + beyond);
}

// Blocks of outputs whose products are taken together.
constexpr int kOuts = 2;

// Weights of a pair of blocks lie in the order in which they are read, [product][block of the pair]
// [in block][16][16]; after each product a gap, for else all products of a weight would share one set of
// a cache's lines.
static inline int64_t weights_step(int pair, int64_t in) { return (pair * in * kBlock + 2) * kBlock; }

// Where those of a product and block `n` of `outs` blocks of outputs are, and how many there are in all;
// in elements.
static inline int64_t weights_at(int side, int product, int n, int outs, int64_t in) {
  const int before = n / kOuts, pair = outs - before * kOuts < kOuts ? outs - before * kOuts : kOuts;
  return before * products_of(side) * weights_step(kOuts, in) + product * weights_step(pair, in) +
         n % kOuts * in * kBlock * kBlock;
}
static inline int64_t weights_count(int side, int outs, int64_t in) {
  const int64_t pairs = outs / kOuts * weights_step(kOuts, in);
  return products_of(side) * (pairs + (outs % kOuts > 0 ? weights_step(outs % kOuts, in) : 0));
}

// From one product's numbers to the next, for some blocks of some patches: an odd number of the cache's
// lines, so that the products of a patch don't share a few sets of lines.
static inline int64_t product_step(int64_t blocks, int64_t patches) {
  return (blocks * patches | 1) * kBlock;
}

// Memory for some patches of any side: transforms of `in` blocks, and products of `kOuts`.
static inline int64_t patch_bytes(int64_t in, bool bfloat16) {
  return products_of(bfloat16 ? 2 : 4) * (product_step(in, kPatches) * (bfloat16 ? 2 : 4) +
                                          product_step(kOuts, kPatches) * 4);
}

}  // namespace cdrl::cpu
