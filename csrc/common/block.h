// What weights, maps and samples are cut into, and bfloat16 as it is stored: shared by all units,
// whatever they are compiled for.
#pragma once

#include <cstdint>
#include <cstring>

namespace cdrl::cpu {

constexpr int kBlock = 16;  // channels, or features

// Blocks of so many channels.
static inline int blocks_of(int channels) { return (channels + kBlock - 1) / kBlock; }

constexpr uint16_t kBFloat16NaN = 0x7FC0;

// The nearest bfloat16, the even one where two are as near. NaN stays NaN: rounding its bits would
// carry some to an infinity or over the sign.
static inline uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t number = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return uint16_t(value != value ? kBFloat16NaN : number);
}

}  // namespace cdrl::cpu
