// `Sixteen`: the 16 channels of a block as one value, for the epilogues that follow an inner loop.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/simd/vector.h"

namespace {

constexpr float kSlope = 0.2f;  // of LeakyReLU below zero

#if defined(__AVX512F__)

struct Sixteen {
  __m512 v;

  static Sixteen load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Sixteen load(const uint16_t* p) { return {Vector::load_bfloat16(p)}; }
  Sixteen plus(Sixteen a) const { return {_mm512_add_ps(v, a.v)}; }
  Sixteen minus(Sixteen a) const { return {_mm512_sub_ps(v, a.v)}; }
  Sixteen times(Sixteen a) const { return {_mm512_mul_ps(v, a.v)}; }
  Sixteen times(float a) const { return times(Sixteen{_mm512_set1_ps(a)}); }
  // Sign bits: bit i is set where channel i is above zero.
  uint16_t positive() const {
    return uint16_t(_mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ));
  }
  // Multiplies the channels whose bit is not set by the slope.
  Sixteen sloped(uint16_t bits) const {
    return {_mm512_mask_mul_ps(v, __mmask16(~bits), v, _mm512_set1_ps(kSlope))};
  }
  void put(float* p) const { _mm512_storeu_ps(p, v); }
  // Stores as bfloat16, rounded to nearest, ties to even.
  void put(uint16_t* p) const { Vector::store_bfloat16(p, v); }
};

#elif defined(__AVX2__)

struct Sixteen {
  __m256 low, high;

  static Sixteen load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static Sixteen load(const uint16_t* p) {
    return {Vector::load_bfloat16(p), Vector::load_bfloat16(p + 8)};
  }
  Sixteen plus(const Sixteen& a) const {
    return {_mm256_add_ps(low, a.low), _mm256_add_ps(high, a.high)};
  }
  Sixteen minus(const Sixteen& a) const {
    return {_mm256_sub_ps(low, a.low), _mm256_sub_ps(high, a.high)};
  }
  Sixteen times(const Sixteen& a) const {
    return {_mm256_mul_ps(low, a.low), _mm256_mul_ps(high, a.high)};
  }
  Sixteen times(float a) const {
    const __m256 factor = _mm256_set1_ps(a);
    return times(Sixteen{factor, factor});
  }
  uint16_t positive() const { return uint16_t(above_zero(low) | above_zero(high) << 8); }
  Sixteen sloped(uint16_t bits) const { return {sloped(low, bits), sloped(high, bits >> 8)}; }
  void put(float* p) const {
    _mm256_storeu_ps(p, low);
    _mm256_storeu_ps(p + 8, high);
  }
  void put(uint16_t* p) const {
    // Packing works within 128-bit halves and leaves four of `low`, four of `high` in each:
    // reorder.
    const __m256i mixed = _mm256_packus_epi32(Vector::halves_of(low), Vector::halves_of(high));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed, 0xD8));
  }

 private:
  static int above_zero(__m256 v) {
    return _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ));
  }
  static __m256 sloped(__m256 v, int bits) {
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(bits), each);
    const __m256 kept = _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, each));
    return _mm256_blendv_ps(_mm256_mul_ps(v, _mm256_set1_ps(kSlope)), v, kept);
  }
};

#else

// Plain loops, which compilers vectorise.
struct Sixteen {
  float v[16];

  static Sixteen load(const float* p) {
    Sixteen result;
    std::memcpy(result.v, p, sizeof result.v);
    return result;
  }
  static Sixteen load(const uint16_t* p) {
    uint32_t bits[16];
    for (int i = 0; i < 16; ++i) bits[i] = uint32_t(p[i]) << 16;
    Sixteen result;
    std::memcpy(result.v, bits, sizeof result.v);
    return result;
  }
  Sixteen plus(const Sixteen& a) const {
    Sixteen result;
    for (int i = 0; i < 16; ++i) result.v[i] = v[i] + a.v[i];
    return result;
  }
  Sixteen minus(const Sixteen& a) const {
    Sixteen result;
    for (int i = 0; i < 16; ++i) result.v[i] = v[i] - a.v[i];
    return result;
  }
  Sixteen times(const Sixteen& a) const {
    Sixteen result;
    for (int i = 0; i < 16; ++i) result.v[i] = v[i] * a.v[i];
    return result;
  }
  Sixteen times(float a) const {
    Sixteen result;
    for (int i = 0; i < 16; ++i) result.v[i] = v[i] * a;
    return result;
  }
  uint16_t positive() const {
    int bits = 0;
    for (int i = 0; i < 16; ++i) bits |= int(v[i] > 0.0f) << i;
    return uint16_t(bits);
  }
  Sixteen sloped(uint16_t bits) const {
    Sixteen result;
    for (int i = 0; i < 16; ++i) result.v[i] = bits >> i & 1 ? v[i] : v[i] * kSlope;
    return result;
  }
  void put(float* p) const { std::memcpy(p, v, sizeof v); }
  void put(uint16_t* p) const {
    for (int i = 0; i < 16; ++i) p[i] = cdrl::cpu::to_bfloat16(v[i]);
  }
};

#endif

}  // namespace
