// The inner loop of every convolution and linear map: a tile of positions × outputs in registers.
//
//   acc[p][n] = sum over blocks c, channels k:  in[c][p][k] · w[n][c][k]
//
// Channels are stored in blocks of 16. `in` is [block][position][16], so that adjacent positions
// are one block apart. Every output is summed in the same order wherever it lies in a tile, so
// results don't depend on how positions are cut into tiles.
//
// Weights are [out block][in block][16 / depth][16 outputs][depth]; depth is the number of channels
// that one instruction multiplies: 2 in bfloat16, 1 in float32. Accumulators are float32.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "common/block.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

using cdrl::cpu::blocks_of;
using cdrl::cpu::kBlock;

struct Float32 {
  using Element = float;
  static constexpr int kDepth = 1;
};
struct BFloat16 {
  using Element = uint16_t;
  static constexpr int kDepth = 2;
};

// The layout of an input.
struct Window {
  int64_t plane;  // elements from one block of channels to the next
  int blocks;     // of input channels

  // Number of weights of one block of outputs.
  int64_t weights() const { return int64_t(blocks) * kBlock * kBlock; }
};

#if defined(__AVX512F__)

constexpr int kTilePositions = 14, kTileBlocks = 2;
using Accumulator = __m512;

inline Accumulator zero_accumulator() { return _mm512_setzero_ps(); }
inline void store(float* out, Accumulator a) { _mm512_storeu_ps(out, a); }

template <class Type>
struct Step;

template <>
struct Step<Float32> {
  using Weight = __m512;
  using Input = __m512;
  static Weight weight(const float* w) { return _mm512_loadu_ps(w); }
  static Input input(const float* x) { return _mm512_set1_ps(*x); }
  static void add(Accumulator& a, Input x, Weight w) { a = _mm512_fmadd_ps(x, w, a); }
};

inline __m512i pair_of(const uint16_t* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof pair);
  return _mm512_set1_epi32(pair);
}

#if defined(__AVX512BF16__)

template <>
struct Step<BFloat16> {
  using Weight = __m512bh;
  using Input = __m512bh;
  static Weight weight(const uint16_t* w) { return (__m512bh)_mm512_loadu_si512(w); }
  static Input input(const uint16_t* x) { return (__m512bh)pair_of(x); }
  static void add(Accumulator& a, Input x, Weight w) { a = _mm512_dpbf16_ps(a, x, w); }
};

#else

template <>
struct Step<BFloat16> {
  struct Two {
    __m512 even, odd;
  };
  using Weight = Two;
  using Input = Two;
  static Two split(__m512i pairs) {
    const __m512i upper = _mm512_set1_epi32(int32_t(0xFFFF0000u));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(pairs, upper))};
  }
  static Weight weight(const uint16_t* w) { return split(_mm512_loadu_si512(w)); }
  static Input input(const uint16_t* x) { return split(pair_of(x)); }
  static void add(Accumulator& a, Input x, Weight w) {
    a = _mm512_fmadd_ps(x.odd, w.odd, _mm512_fmadd_ps(x.even, w.even, a));
  }
};

#endif

#elif defined(__AVX2__)

constexpr int kTilePositions = 6, kTileBlocks = 1;
struct Accumulator {
  __m256 half[2];
};

inline Accumulator zero_accumulator() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
inline void store(float* out, Accumulator a) {
  _mm256_storeu_ps(out, a.half[0]);
  _mm256_storeu_ps(out + 8, a.half[1]);
}

template <class Type>
struct Step;

template <>
struct Step<Float32> {
  using Weight = Accumulator;
  using Input = __m256;
  static Weight weight(const float* w) { return {{_mm256_loadu_ps(w), _mm256_loadu_ps(w + 8)}}; }
  static Input input(const float* x) { return _mm256_broadcast_ss(x); }
  static void add(Accumulator& a, Input x, const Weight& w) {
    for (int i = 0; i < 2; ++i) a.half[i] = _mm256_fmadd_ps(x, w.half[i], a.half[i]);
  }
};

template <>
struct Step<BFloat16> {
  struct Two {
    __m256 even, odd;
  };
  struct Weight {
    Two half[2];
  };
  using Input = Two;
  static Two split(__m256i pairs) {
    const __m256i upper = _mm256_set1_epi32(int32_t(0xFFFF0000u));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(pairs, upper))};
  }
  static Weight weight(const uint16_t* w) {
    const auto* p = reinterpret_cast<const __m256i*>(w);
    return {{split(_mm256_loadu_si256(p)), split(_mm256_loadu_si256(p + 1))}};
  }
  static Input input(const uint16_t* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return split(_mm256_set1_epi32(pair));
  }
  static void add(Accumulator& a, Input x, const Weight& w) {
    for (int i = 0; i < 2; ++i) {
      a.half[i] =
          _mm256_fmadd_ps(x.odd, w.half[i].odd, _mm256_fmadd_ps(x.even, w.half[i].even, a.half[i]));
    }
  }
};

#else

constexpr int kTilePositions = 4, kTileBlocks = 1;
struct Accumulator {
  float v[kBlock];
};

inline Accumulator zero_accumulator() { return {}; }
inline void store(float* out, const Accumulator& a) { std::memcpy(out, a.v, sizeof a.v); }

inline float widened(uint16_t half) {
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class Type>
struct Step;

template <>
struct Step<Float32> {
  using Weight = const float*;
  using Input = float;
  static Weight weight(const float* w) { return w; }
  static Input input(const float* x) { return *x; }
  static void add(Accumulator& a, Input x, Weight w) {
    for (int i = 0; i < kBlock; ++i) a.v[i] += x * w[i];
  }
};

template <>
struct Step<BFloat16> {
  struct Input {
    float even, odd;
  };
  using Weight = const uint16_t*;
  static Weight weight(const uint16_t* w) { return w; }
  static Input input(const uint16_t* x) { return {widened(x[0]), widened(x[1])}; }
  static void add(Accumulator& a, Input x, Weight w) {
    for (int i = 0; i < kBlock; ++i) {
      a.v[i] += x.even * widened(w[2 * i]);
      a.v[i] += x.odd * widened(w[2 * i + 1]);
    }
  }
};

#endif

// Computes `outs` blocks of outputs for the `positions` positions from `in` on. Positions are
// written one after the other, blocks of outputs `apart` floats apart.
template <class Type, int positions, int outs>
void tile(const typename Type::Element* in, const Window& window,
          const typename Type::Element* weights, float* to, int64_t apart) {
  using S = Step<Type>;
  constexpr int depth = Type::kDepth;
  const int64_t stride = window.weights();
  Accumulator sums[positions][outs];
#pragma GCC unroll 16
  for (int p = 0; p < positions; ++p) {
#pragma GCC unroll 2
    for (int n = 0; n < outs; ++n) sums[p][n] = zero_accumulator();
  }
  for (int c = 0; c < window.blocks; ++c, in += window.plane) {
#pragma GCC unroll 1
    for (int k = 0; k < kBlock; k += depth, weights += kBlock * depth) {
      typename S::Weight w[outs];
#pragma GCC unroll 2
      for (int n = 0; n < outs; ++n) w[n] = S::weight(weights + n * stride);
#pragma GCC unroll 16
      for (int p = 0; p < positions; ++p) {
        const typename S::Input value = S::input(in + p * kBlock + k);
#pragma GCC unroll 2
        for (int n = 0; n < outs; ++n) S::add(sums[p][n], value, w[n]);
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < positions; ++p) {
#pragma GCC unroll 2
    for (int n = 0; n < outs; ++n) store(to + n * apart + p * kBlock, sums[p][n]);
  }
}

template <class Type>
using Tile = void (*)(const typename Type::Element*, const Window&, const typename Type::Element*,
                      float*, int64_t);

template <class Type, int outs, int... positions>
Tile<Type> tile_of(int count, std::integer_sequence<int, positions...>) {
  static constexpr Tile<Type> tiles[] = {tile<Type, positions + 1, outs>...};
  return tiles[count - 1];
}

// Returns `tile` for 1 to kTilePositions positions and 1 to kTileBlocks blocks of outputs.
template <class Type>
Tile<Type> tile_of(int positions, int outs) {
  using Counts = std::make_integer_sequence<int, kTilePositions>;
  if constexpr (kTileBlocks > 1) {
    if (outs > 1) return tile_of<Type, kTileBlocks>(positions, Counts());
  }
  return tile_of<Type, 1>(positions, Counts());
}

}  // namespace
