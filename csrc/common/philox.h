// The noise stream for one block of four elements: Philox4x32-10, uniforms, Box-Muller.
//
// Runs on host and device. cpu/noise/normals.h computes the same numbers for many blocks at a time
// and takes its coefficients from here. Source of the generator: Salmon, Moraes, Dror, Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define CDRL_INLINE __host__ __device__ __forceinline__
#define CDRL_UNROLL _Pragma("unroll")
#else
#include <cmath>
// Internal linkage, because files compiled for different instruction sets must not share code.
#define CDRL_INLINE static inline
#define CDRL_UNROLL
#endif

namespace cdrl {

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;

// -2 ln(1 + f) = f (-2 + f (1 + f P(f))) for f in [-1/4, 1/2); relative error 2.5e-7.
CDRL_INLINE constexpr float log_term(int i) {
  constexpr float terms[6] = {-0.66662151f, 0.49971236f,  -0.40189617f,
                              0.34549650f,  -0.28128944f, 0.13416791f};
  return terms[i];
}
constexpr float kMinusTwoLog2 = -1.38629436f;
// Bits of 3/4. Subtracting them splits u into an exponent and f in [-1/4, 1/2).
constexpr uint32_t kThreeQuarters = 0x3F400000u;
// sin(2 pi r) = r S(r r) and cos(2 pi r) = 1 + r r C(r r) for |r| <= 1/4; errors 4e-9, 6e-8.
CDRL_INLINE constexpr float sin_term(int i) {
  constexpr float terms[5] = {6.2831852f, -41.341655f, 81.601004f, -76.549782f, 39.536707f};
  return terms[i];
}
CDRL_INLINE constexpr float cos_term(int i) {
  constexpr float terms[4] = {-19.739182f, 64.935221f, -85.254008f, 56.340653f};
  return terms[i];
}
// Adding it rounds a float below 2^22 to an integer, which is then in the sum's low bits.
constexpr float kRound = 12582912.0f;

struct Four {
  float n[4];
};

CDRL_INLINE float from_bits(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

CDRL_INLINE uint32_t to_bits(float value) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
#endif
}

// Replaces the counter (block, draw, low and high half of the sample index) by four random uint32.
CDRL_INLINE void philox(uint32_t c[4], uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  CDRL_UNROLL
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = uint64_t(c[0]) * kMultiplier0, p1 = uint64_t(c[2]) * kMultiplier1;
    c[0] = uint32_t(p1 >> 32) ^ c[1] ^ k0;
    c[2] = uint32_t(p0 >> 32) ^ c[3] ^ k1;
    c[1] = uint32_t(p1);
    c[3] = uint32_t(p0);
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
}

// Maps a uint32 to (0, 1]. The product is exact, so fused and unfused multiply-add give the same
// bits.
CDRL_INLINE float uniform(uint32_t bits) { return float(bits) * 0x1p-32f + 0x1p-33f; }

// -2 ln u for u in (0, 1]; the relative error stays small near u = 1, where the value goes to 0.
CDRL_INLINE float minus_two_log(float u) {
  const uint32_t shifted = to_bits(u) - kThreeQuarters;
  const float exponent = float(int32_t(shifted) >> 23);
  const float f = from_bits((shifted & 0x7FFFFFu) + kThreeQuarters) - 1.0f;
  float p = log_term(5);
  CDRL_UNROLL
  for (int i = 4; i >= 0; --i) p = p * f + log_term(i);
  p = (p * f + 1.0f) * f - 2.0f;
  return p * f + exponent * kMinusTwoLog2;
}

// Two normals from two uint32: sqrt(-2 ln u) (cos, sin)(2 pi v). Subtracting the nearest multiple
// of 1/2 from v reduces the angle to [-pi/2, pi/2] and may flip both signs; the radius takes that
// sign.
CDRL_INLINE void box_muller(uint32_t first, uint32_t second, float& n0, float& n1) {
  const float v = uniform(second);
  const float shifted = v * 2.0f + kRound;
  const float r = v - (shifted - kRound) * 0.5f;
  const float rr = r * r;
  float s = sin_term(4), c = cos_term(3);
  CDRL_UNROLL
  for (int i = 3; i >= 0; --i) s = s * rr + sin_term(i);
  CDRL_UNROLL
  for (int i = 2; i >= 0; --i) c = c * rr + cos_term(i);
#ifdef __CUDA_ARCH__
  float radius = __fsqrt_rn(minus_two_log(uniform(first)));
#else
  float radius = std::sqrt(minus_two_log(uniform(first)));
#endif
  radius = from_bits(to_bits(radius) ^ (to_bits(shifted) << 31));
  n0 = radius * (c * rr + 1.0f);
  n1 = radius * (s * r);
}

// Elements 4 block to 4 block + 3 of one draw of one sample.
CDRL_INLINE Four normals(uint64_t seed, uint32_t draw, uint64_t sample, uint32_t block) {
  uint32_t c[4] = {block, draw, uint32_t(sample), uint32_t(sample >> 32)};
  philox(c, seed);
  Four four;
  box_muller(c[0], c[1], four.n[0], four.n[1]);
  box_muller(c[2], c[3], four.n[2], four.n[3]);
  return four;
}

}  // namespace cdrl
