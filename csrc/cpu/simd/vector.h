// Registers of one instruction set under common names. `Vector` uses the widest registers that the
// compiler flags of the including file allow: AVX-512, AVX2 or plain C++.
//
// A register has kLanes 64-bit lanes (`Wide`) or 2 kLanes 32-bit lanes (`Word`, `Float`).
//
// Everything here is in an unnamed namespace. With external linkage, the linker would keep one copy
// of an inline function for all files, perhaps the AVX-512 one, and a machine without AVX-512 would
// stop at an illegal instruction.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/block.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)

struct Vector {
  static constexpr int kLanes = 8;
  using Wide = __m512i;
  using Word = __m512i;
  using Float = __m512;

  static Wide wide(uint64_t a) { return _mm512_set1_epi64(int64_t(a)); }
  static Wide load_wide(const uint64_t* p) { return _mm512_loadu_si512(p); }
  static Wide add_wide(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
  static Wide multiply(Wide a, Wide b) { return _mm512_mul_epu32(a, b); }
  static Wide high(Wide a) { return _mm512_srli_epi64(a, 32); }
  static Wide xor3(Wide a, Wide b, Wide c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static Wide up(Wide a) { return _mm512_slli_epi64(a, 32); }
  // Takes the lower halves of a and the upper halves of b.
  static Word interleave(Wide a, Wide b) { return _mm512_mask_blend_epi32(0xAAAA, a, b); }
  static Word word(uint32_t a) { return _mm512_set1_epi32(int32_t(a)); }
  static Word add(Word a, Word b) { return _mm512_add_epi32(a, b); }
  static Word subtract(Word a, Word b) { return _mm512_sub_epi32(a, b); }
  static Word both(Word a, Word b) { return _mm512_and_si512(a, b); }
  static Word exponent(Word a) { return _mm512_srai_epi32(a, 23); }
  static Word to_sign(Word a) { return _mm512_slli_epi32(a, 31); }
  static Float from_unsigned(Word a) { return _mm512_cvtepu32_ps(a); }
  static Float from_signed(Word a) { return _mm512_cvtepi32_ps(a); }
  static Word bits(Float a) { return _mm512_castps_si512(a); }
  static Float floats(Word a) { return _mm512_castsi512_ps(a); }
  static Float flip(Float a, Word sign) { return floats(_mm512_xor_si512(bits(a), sign)); }
  static Float number(float a) { return _mm512_set1_ps(a); }
  static Float plus(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float minus(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float times(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float fnma(Float a, Float b, Float c) { return _mm512_fnmadd_ps(a, b, c); }
  static Float root(Float a) { return _mm512_sqrt_ps(a); }
  // 1 / a for a >= 1. Refines an estimate of 14 bits, because a division takes twice as long.
  static Float inverse(Float a) {
    const Float r = _mm512_rcp14_ps(a), error = fnma(a, r, number(1.0f));
    const __mmask16 finite = _mm512_cmp_ps_mask(a, number(__builtin_inff()), _CMP_LT_OQ);
    return _mm512_mask3_fmadd_ps(r, error, r, finite);
  }
  // Clamps to a bound; NaN stays NaN.
  static Float at_least(Float a, float bound) { return _mm512_max_ps(number(bound), a); }
  static Float at_most(Float a, float bound) { return _mm512_min_ps(number(bound), a); }
  // a where x > 0, else b.
  static Float if_positive(Float x, Float a, Float b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, number(0.0f), _CMP_GT_OQ), b, a);
  }
  static Word to_exponent(Word a) { return _mm512_slli_epi32(a, 23); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float a) { _mm512_storeu_ps(p, a); }
  static Float load_bfloat16(const uint16_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
  static void store_bfloat16(uint16_t* p, Float a) {
#if defined(__AVX512BF16__)
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(a);
#else
    const __m512i odd = both(_mm512_srli_epi32(bits(a), 16), word(1));
    const __m512i number = _mm512_srli_epi32(add(bits(a), add(odd, word(0x7FFF))), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m256i halves =
        _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(number, nan, word(cdrl::cpu::kBFloat16NaN)));
#endif
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), halves);
  }
  static Float load_float16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Float unpack_low(Float a, Float b) { return _mm512_unpacklo_ps(a, b); }
  static Float unpack_high(Float a, Float b) { return _mm512_unpackhi_ps(a, b); }
};

#elif defined(__AVX2__)

struct Vector {
  static constexpr int kLanes = 4;
  using Wide = __m256i;
  using Word = __m256i;
  using Float = __m256;

  static Wide wide(uint64_t a) { return _mm256_set1_epi64x(int64_t(a)); }
  static Wide load_wide(const uint64_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static Wide add_wide(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
  static Wide multiply(Wide a, Wide b) { return _mm256_mul_epu32(a, b); }
  static Wide high(Wide a) { return _mm256_srli_epi64(a, 32); }
  static Wide xor3(Wide a, Wide b, Wide c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  static Wide up(Wide a) { return _mm256_slli_epi64(a, 32); }
  static Word interleave(Wide a, Wide b) { return _mm256_blend_epi32(a, b, 0xAA); }
  static Word word(uint32_t a) { return _mm256_set1_epi32(int32_t(a)); }
  static Word add(Word a, Word b) { return _mm256_add_epi32(a, b); }
  static Word subtract(Word a, Word b) { return _mm256_sub_epi32(a, b); }
  static Word both(Word a, Word b) { return _mm256_and_si256(a, b); }
  static Word exponent(Word a) { return _mm256_srai_epi32(a, 23); }
  static Word to_sign(Word a) { return _mm256_slli_epi32(a, 31); }
  // AVX2 has no unsigned conversion. Both 16-bit halves are exact, and the sum is rounded once.
  static Float from_unsigned(Word a) {
    const Float upper = _mm256_cvtepi32_ps(_mm256_srli_epi32(a, 16));
    return fma(upper, number(65536.0f), _mm256_cvtepi32_ps(both(a, word(0xFFFF))));
  }
  static Float from_signed(Word a) { return _mm256_cvtepi32_ps(a); }
  static Word bits(Float a) { return _mm256_castps_si256(a); }
  static Float floats(Word a) { return _mm256_castsi256_ps(a); }
  static Float flip(Float a, Word sign) { return floats(_mm256_xor_si256(bits(a), sign)); }
  static Float number(float a) { return _mm256_set1_ps(a); }
  static Float plus(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float minus(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float times(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float fnma(Float a, Float b, Float c) { return _mm256_fnmadd_ps(a, b, c); }
  static Float root(Float a) { return _mm256_sqrt_ps(a); }
  static Float inverse(Float a) { return _mm256_div_ps(number(1.0f), a); }
  static Float at_least(Float a, float bound) { return _mm256_max_ps(number(bound), a); }
  static Float at_most(Float a, float bound) { return _mm256_min_ps(number(bound), a); }
  static Float if_positive(Float x, Float a, Float b) {
    return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, number(0.0f), _CMP_GT_OQ));
  }
  static Word to_exponent(Word a) { return _mm256_slli_epi32(a, 23); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float a) { _mm256_storeu_ps(p, a); }
  static Float load_bfloat16(const uint16_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
  }
  // Rounds to bfloat16 as `to_bfloat16` does; results are in the lower halves of 32-bit lanes.
  static Word halves_of(Float a) {
    const __m256i odd = both(_mm256_srli_epi32(bits(a), 16), word(1));
    const __m256i number = _mm256_srli_epi32(add(bits(a), add(odd, word(0x7FFF))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(number, word(cdrl::cpu::kBFloat16NaN), nan);
  }
  static void store_bfloat16(uint16_t* p, Float a) {
    const __m256i halves = halves_of(a);
    const __m128i low = _mm256_castsi256_si128(halves), high = _mm256_extracti128_si256(halves, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
  }
  static Float load_float16(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Float unpack_low(Float a, Float b) { return _mm256_unpacklo_ps(a, b); }
  static Float unpack_high(Float a, Float b) { return _mm256_unpackhi_ps(a, b); }
};

#else

// Plain C++ for any processor: arrays of 128 bits, which compilers vectorise.
struct Vector {
  static constexpr int kLanes = 2;
  struct Wide {
    uint64_t v[2];
  };
  struct Word {
    uint32_t v[4];
  };
  struct Float {
    float v[4];
  };

  template <class Result, class Function>
  static Result each(Function function) {
    Result result;
    for (int i = 0; i < int(sizeof(result.v) / sizeof(result.v[0])); ++i) {
      result.v[i] = function(i);
    }
    return result;
  }

  static Wide wide(uint64_t a) { return {{a, a}}; }
  static Wide load_wide(const uint64_t* p) { return {{p[0], p[1]}}; }
  static Wide add_wide(Wide a, Wide b) {
    return each<Wide>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static Wide multiply(Wide a, Wide b) {
    return each<Wide>([&](int i) { return uint64_t(uint32_t(a.v[i])) * uint32_t(b.v[i]); });
  }
  static Wide high(Wide a) {
    return each<Wide>([&](int i) { return a.v[i] >> 32; });
  }
  static Wide xor3(Wide a, Wide b, Wide c) {
    return each<Wide>([&](int i) { return a.v[i] ^ b.v[i] ^ c.v[i]; });
  }
  static Wide up(Wide a) {
    return each<Wide>([&](int i) { return a.v[i] << 32; });
  }
  static Word interleave(Wide a, Wide b) {
    return {{uint32_t(a.v[0]), uint32_t(b.v[0] >> 32), uint32_t(a.v[1]), uint32_t(b.v[1] >> 32)}};
  }
  static Word word(uint32_t a) { return {{a, a, a, a}}; }
  static Word add(Word a, Word b) {
    return each<Word>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static Word subtract(Word a, Word b) {
    return each<Word>([&](int i) { return a.v[i] - b.v[i]; });
  }
  static Word both(Word a, Word b) {
    return each<Word>([&](int i) { return a.v[i] & b.v[i]; });
  }
  static Word exponent(Word a) {
    return each<Word>([&](int i) { return uint32_t(int32_t(a.v[i]) >> 23); });
  }
  static Word to_sign(Word a) {
    return each<Word>([&](int i) { return a.v[i] << 31; });
  }
  static Float from_unsigned(Word a) {
    return each<Float>([&](int i) { return float(a.v[i]); });
  }
  static Float from_signed(Word a) {
    return each<Float>([&](int i) { return float(int32_t(a.v[i])); });
  }
  static Word bits(Float a) {
    Word result;
    std::memcpy(&result, &a, sizeof a);
    return result;
  }
  static Float floats(Word a) {
    Float result;
    std::memcpy(&result, &a, sizeof a);
    return result;
  }
  static Float flip(Float a, Word sign) {
    const Word b = bits(a);
    return floats(each<Word>([&](int i) { return b.v[i] ^ sign.v[i]; }));
  }
  static Float number(float a) { return {{a, a, a, a}}; }
  static Float plus(Float a, Float b) {
    return each<Float>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static Float minus(Float a, Float b) {
    return each<Float>([&](int i) { return a.v[i] - b.v[i]; });
  }
  static Float times(Float a, Float b) {
    return each<Float>([&](int i) { return a.v[i] * b.v[i]; });
  }
  static Float fma(Float a, Float b, Float c) {
    return each<Float>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
  }
  static Float fnma(Float a, Float b, Float c) {
    return each<Float>([&](int i) { return c.v[i] - a.v[i] * b.v[i]; });
  }
  static Float root(Float a) {
    return each<Float>([&](int i) { return __builtin_sqrtf(a.v[i]); });
  }
  static Float inverse(Float a) {
    return each<Float>([&](int i) { return 1.0f / a.v[i]; });
  }
  static Float at_least(Float a, float bound) {
    return each<Float>([&](int i) { return bound > a.v[i] ? bound : a.v[i]; });
  }
  static Float at_most(Float a, float bound) {
    return each<Float>([&](int i) { return bound < a.v[i] ? bound : a.v[i]; });
  }
  static Float if_positive(Float x, Float a, Float b) {
    return each<Float>([&](int i) { return x.v[i] > 0.0f ? a.v[i] : b.v[i]; });
  }
  static Word to_exponent(Word a) {
    return each<Word>([&](int i) { return a.v[i] << 23; });
  }
  static Float load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static void store(float* p, Float a) { std::memcpy(p, a.v, sizeof a.v); }
  static Float load_bfloat16(const uint16_t* p) {
    return floats(each<Word>([&](int i) { return uint32_t(p[i]) << 16; }));
  }
  static void store_bfloat16(uint16_t* p, Float a) {
    for (int i = 0; i < 4; ++i) p[i] = cdrl::cpu::to_bfloat16(a.v[i]);
  }
  static Float load_float16(const uint16_t* p) {
    return each<Float>([&](int i) {
      const uint32_t sign = uint32_t(p[i] & 0x8000) << 16, rest = p[i] & 0x7FFF;
      // Moves exponent and mantissa into place, then scales by the difference of the biases, which
      // is right for subnormal numbers too. Infinity and NaN keep an exponent of all ones.
      uint32_t bits = rest << 13;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      value *= 0x1p112f;
      std::memcpy(&bits, &value, sizeof bits);
      if (rest >= 0x7C00) bits = 0x7F800000u | (rest << 13);
      bits |= sign;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    });
  }
  static Float unpack_low(Float a, Float b) { return {{a.v[0], b.v[0], a.v[1], b.v[1]}}; }
  static Float unpack_high(Float a, Float b) { return {{a.v[2], b.v[2], a.v[3], b.v[3]}}; }
};

#endif

}  // namespace
