// The block of 16 channels in which weights and feature maps are stored, and bfloat16 as it is
// stored. All files include it, whatever instruction set they are compiled for.
#pragma once

#include <cstdint>
#include <cstring>

namespace cdrl::cpu {

constexpr int kBlock = 16;  // channels, or features of an MLP

// Number of blocks that hold `channels` channels.
static inline int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

constexpr uint16_t kBFloat16NaN = 0x7FC0;

// Rounds to the nearest bfloat16, ties to even. NaN is tested for, because rounding its bits could
// carry into the exponent (an infinity) or into the sign.
static inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t number = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return uint16_t(value != value ? kBFloat16NaN : number);
}

}  // namespace cdrl::cpu
