// e^x, SiLU and its derivative in float32 for the 16 channels of a block.
//
// x = n ln 2 + r with |r| <= ln 2 / 2 and e^r = 1 + r + r² q(r). The polynomial q of degree 4
// minimises the relative error (3e-9 in exact arithmetic); the result's relative error is at most
// 2e-7. Arguments are clamped so that 2^n stays a normal number; NaN stays NaN.
#pragma once

#include "cpu/simd/sixteen.h"

namespace {

constexpr float kLowest = -87.0f, kHighest = 88.0f;
constexpr float kLog2e = 1.44269504f;
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kExp2 = 4.999999344e-01f, kExp3 = 1.666652057e-01f, kExp4 = 4.166838874e-02f;
constexpr float kExp5 = 8.368724023e-03f, kExp6 = 1.381458397e-03f;

#if defined(__AVX512F__)

inline Sixteen exponential(Sixteen a) {
  // max and min return their second operand where either is NaN.
  const __m512 x =
      _mm512_min_ps(_mm512_set1_ps(kHighest), _mm512_max_ps(_mm512_set1_ps(kLowest), a.v));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2e)), 0);
  const __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2Low),
                                    _mm512_fnmadd_ps(n, _mm512_set1_ps(kLn2High), x));
  __m512 q = _mm512_fmadd_ps(_mm512_set1_ps(kExp6), r, _mm512_set1_ps(kExp5));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(kExp4));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(kExp3));
  q = _mm512_fmadd_ps(q, r, _mm512_set1_ps(kExp2));
  const __m512 p = _mm512_fmadd_ps(_mm512_mul_ps(r, r), q, r);
  return {_mm512_scalef_ps(_mm512_add_ps(p, _mm512_set1_ps(1.0f)), n)};
}

// x a + b.
inline Sixteen affine(Sixteen x, Sixteen a, Sixteen b) { return {_mm512_fmadd_ps(x.v, a.v, b.v)}; }

// x / (1 + e^-x).
inline Sixteen silu(Sixteen x) {
  const Sixteen e = exponential(x.times(-1.0f));
  return {_mm512_div_ps(x.v, _mm512_add_ps(e.v, _mm512_set1_ps(1.0f)))};
}

// The derivative of silu: s (1 + x (1 - s)) with s = 1 / (1 + e^-x).
inline Sixteen silu_slope(Sixteen x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 s = _mm512_div_ps(one, _mm512_add_ps(exponential(x.times(-1.0f)).v, one));
  return {_mm512_mul_ps(s, _mm512_fmadd_ps(x.v, _mm512_sub_ps(one, s), one))};
}

#elif defined(__AVX2__)

inline __m256 exponential(__m256 a) {
  const __m256 x =
      _mm256_min_ps(_mm256_set1_ps(kHighest), _mm256_max_ps(_mm256_set1_ps(kLowest), a));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(kLog2e)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2Low),
                                    _mm256_fnmadd_ps(n, _mm256_set1_ps(kLn2High), x));
  __m256 q = _mm256_fmadd_ps(_mm256_set1_ps(kExp6), r, _mm256_set1_ps(kExp5));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(kExp4));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(kExp3));
  q = _mm256_fmadd_ps(q, r, _mm256_set1_ps(kExp2));
  const __m256 p = _mm256_fmadd_ps(_mm256_mul_ps(r, r), q, r);
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(_mm256_add_ps(p, _mm256_set1_ps(1.0f)),
                       _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}

// 1 + e^-x.
inline __m256 one_plus_exp_minus(__m256 x) {
  const __m256 e = exponential(_mm256_sub_ps(_mm256_setzero_ps(), x));
  return _mm256_add_ps(e, _mm256_set1_ps(1.0f));
}

inline __m256 silu_slope(__m256 x) {
  const __m256 one = _mm256_set1_ps(1.0f), s = _mm256_div_ps(one, one_plus_exp_minus(x));
  return _mm256_mul_ps(s, _mm256_fmadd_ps(x, _mm256_sub_ps(one, s), one));
}

inline Sixteen exponential(const Sixteen& a) { return {exponential(a.low), exponential(a.high)}; }

inline Sixteen affine(const Sixteen& x, const Sixteen& a, const Sixteen& b) {
  return {_mm256_fmadd_ps(x.low, a.low, b.low), _mm256_fmadd_ps(x.high, a.high, b.high)};
}

inline Sixteen silu(const Sixteen& x) {
  return {_mm256_div_ps(x.low, one_plus_exp_minus(x.low)),
          _mm256_div_ps(x.high, one_plus_exp_minus(x.high))};
}

inline Sixteen silu_slope(const Sixteen& x) { return {silu_slope(x.low), silu_slope(x.high)}; }

#else

// Plain loops, which compilers vectorise.
inline Sixteen exponential(Sixteen a) {
  constexpr float kRound = 12582912.0f;  // 1.5 · 2²³: adding and subtracting it rounds
  float numbers[16];
  a.put(numbers);
  for (int i = 0; i < 16; ++i) {
    float x = numbers[i] < kLowest ? kLowest : numbers[i];
    x = x > kHighest ? kHighest : x;
    const float shifted = x * kLog2e + kRound, n = shifted - kRound;
    const float r = (x - n * kLn2High) - n * kLn2Low;
    const float q = kExp2 + r * (kExp3 + r * (kExp4 + r * (kExp5 + r * kExp6)));
    const float p = 1.0f + (r + r * r * q);
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;  // the low bits of `shifted` are n
    float power;
    std::memcpy(&power, &bits, sizeof power);
    numbers[i] = p * power;
  }
  return Sixteen::load(numbers);
}

inline Sixteen affine(const Sixteen& x, const Sixteen& a, const Sixteen& b) {
  float numbers[3][16];
  x.put(numbers[0]);
  a.put(numbers[1]);
  b.put(numbers[2]);
  for (int i = 0; i < 16; ++i) numbers[0][i] = numbers[0][i] * numbers[1][i] + numbers[2][i];
  return Sixteen::load(numbers[0]);
}

inline Sixteen silu(const Sixteen& x) {
  float numbers[2][16];
  x.put(numbers[0]);
  exponential(x.times(-1.0f)).put(numbers[1]);
  for (int i = 0; i < 16; ++i) numbers[0][i] /= 1.0f + numbers[1][i];
  return Sixteen::load(numbers[0]);
}

inline Sixteen silu_slope(const Sixteen& x) {
  float numbers[2][16];
  x.put(numbers[0]);
  exponential(x.times(-1.0f)).put(numbers[1]);
  for (int i = 0; i < 16; ++i) {
    const float s = 1.0f / (1.0f + numbers[1][i]);
    numbers[0][i] = s * (1.0f + numbers[0][i] * (1.0f - s));
  }
  return Sixteen::load(numbers[0]);
}

#endif

}  // namespace
