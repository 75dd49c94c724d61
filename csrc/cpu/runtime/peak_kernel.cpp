// The inner loop of matrix products alone: what this processor can do. Compiled once for each
// instruction set.
#include "cpu/conv/tile.h"

namespace {

template <class Type>
double products(int repeats) {
  // 64 inputs: 14 positions and weights of two blocks of outputs, 12 KB at most.
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

double products(bool bfloat16, int repeats) {
  return bfloat16 ? ::products<BFloat16>(repeats) : ::products<Float32>(repeats);
}

}  // namespace cdrl::cpu::CDRL_VARIANT
