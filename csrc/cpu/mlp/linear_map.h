// Linear maps of many samples with the inner loop of tile.h, and helpers for their epilogues.
#pragma once

#include "cpu/conv/tile.h"
#include "cpu/simd/vector.h"

namespace {

using V = Vector;

constexpr int kWidth = 2 * V::kLanes;  // floats per register

inline void store_as(float* p, V::Float a) { V::store(p, a); }
inline void store_as(uint16_t* p, V::Float a) { V::store_bfloat16(p, a); }

// Calls use(block, sample, sums of 16 outputs) for every sample and block of outputs of a linear
// map.
template <class Type, class Use>
inline void linear_map(const typename Type::Element* in, int in_blocks,
                       const typename Type::Element* weights, int out_blocks, int samples,
                       Use use) {
  const Window window{int64_t(samples) * kBlock, in_blocks};
  alignas(64) float sums[kTilePositions * kTileBlocks * kBlock];
  // Tiles of nearly equal size, because a small tile loads as many weights as a large one.
  const int tiles = (samples + kTilePositions - 1) / kTilePositions;
  // The weights of kTileBlocks blocks stay in the L1 cache for all samples.
  for (int block = 0; block < out_blocks; block += kTileBlocks) {
    const int outs = out_blocks - block < kTileBlocks ? out_blocks - block : kTileBlocks;
    const typename Type::Element* w = weights + block * window.weights();
    for (int i = 0; i < tiles; ++i) {
      const int begin = samples * i / tiles, count = samples * (i + 1) / tiles - begin;
      tile_of<Type>(count, outs)(in + begin * kBlock, window, w, sums, kTilePositions * kBlock);
      for (int n = 0; n < outs; ++n) {
        for (int p = 0; p < count; ++p) {
          use(block + n, begin + p, sums + (n * kTilePositions + p) * kBlock);
        }
      }
    }
  }
}

template <int count>
inline float sum_of(const float* parts) {
  if constexpr (count == 1) {
    return *parts;
  } else {
    return sum_of<count / 2>(parts) + sum_of<count / 2>(parts + count / 2);
  }
}

// The sum of a register's lanes.
inline float total(V::Float sums) {
  float parts[kWidth];
  V::store(parts, sums);
  return sum_of<kWidth>(parts);
}

}  // namespace
