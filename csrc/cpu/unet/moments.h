// Sums of values and of squares over positions for group norms, in double precision, so that the
// variance can be computed from them without loss of accuracy.
#pragma once

#include "cpu/simd/sixteen.h"

namespace {

constexpr int kMoments = 32;  // per block: 16 sums of values, 16 of squares

#if defined(__AVX512F__)

inline void add_moments(double* to, Sixteen x) {
  const __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(x.v));
  const __m512d high =
      _mm512_cvtps_pd(_mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x.v), 1)));
  _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), low));
  _mm512_storeu_pd(to + 8, _mm512_add_pd(_mm512_loadu_pd(to + 8), high));
  _mm512_storeu_pd(to + 16, _mm512_fmadd_pd(low, low, _mm512_loadu_pd(to + 16)));
  _mm512_storeu_pd(to + 24, _mm512_fmadd_pd(high, high, _mm512_loadu_pd(to + 24)));
}

#else

inline void add_moments(double* to, const Sixteen& x) {
  float numbers[16];
  x.put(numbers);
  for (int i = 0; i < 16; ++i) {
    const double value = double(numbers[i]);
    to[i] += value;
    to[16 + i] += value * value;
  }
}

#endif

}  // namespace
