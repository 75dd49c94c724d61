// The inner loop of matrix products alone, on data in the L1 cache.
#include "cpu/conv/tile.h"

namespace {

template <class Type>
double peak_loop(int repeats) {
  // 64 inputs of 14 positions, and weights for two blocks of outputs: 12 KB at most.
  constexpr int kBlocks = 4;
  alignas(64) static thread_local typename Type::Element in[kBlocks * kTilePositions * kBlock];
  alignas(64) static thread_local
      typename Type::Element weights[kTileBlocks * kBlocks * kBlock * kBlock];
  alignas(64) static thread_local float sums[kTilePositions * kTileBlocks * kBlock];
  const Window window{kTilePositions * kBlock, kBlocks};
  const auto sum = tile_of<Type>(kTilePositions, kTileBlocks);
  for (int i = 0; i < repeats; ++i) sum(in, window, weights, sums, kTilePositions * kBlock);
  return 2.0 * repeats * kTilePositions * kTileBlocks * kBlock * kBlocks * kBlock;
}

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

double peak_loop(bool bfloat16, int repeats) {
  return bfloat16 ? ::peak_loop<BFloat16>(repeats) : ::peak_loop<Float32>(repeats);
}

}  // namespace cdrl::cpu::CDRL_VARIANT
