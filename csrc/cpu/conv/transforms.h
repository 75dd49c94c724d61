// Winograd's transforms of 3×3 convolutions (by Toom and Cook), which need fewer products:
//
//   y = Aᵀ [Σ over channels (G w Gᵀ) ⊙ (Bᵀ d B)] A
//
// y is a patch of outputs and d the inputs around it. G w Gᵀ is computed once, when weights are
// packed (pack.h). A rule is a size of patch: `ByTwo` is F(2×2, 3×3), 16 products for 4 outputs
// where direct convolution takes 36; `ByFour` is F(4×4, 3×3), 36 products for 16 outputs instead of
// 144.
#pragma once

#include "cpu/simd/sixteen.h"

namespace {

// Without vector registers a transform is much code; one copy is enough.
#if defined(__AVX2__)
#define CDRL_TRANSFORM inline
#else
#define CDRL_TRANSFORM __attribute__((noinline))
#endif

// Bᵀ and Aᵀ have entries 0 and ±1 alone. Rows are computed one by one, each from newly loaded
// inputs, so that few registers suffice and columns that a row doesn't need are not loaded.
struct ByTwo {
  static constexpr int kOut = 2, kIn = 4, kProducts = 16;

  // Writes Bᵀ d B of 4×4 positions to `out`, one product every `step` elements. at(row, column) is
  // the address of a position's 16 channels.
  template <class At, class Element>
  CDRL_TRANSFORM static void inputs(const At& at, Element* out, int64_t step) {
    inputs_row<0>(at, out, step);
    inputs_row<1>(at, out, step);
    inputs_row<2>(at, out, step);
    inputs_row<3>(at, out, step);
  }

  // Computes Aᵀ m A of the products from `m` on, which are `step` elements apart.
  CDRL_TRANSFORM static void outputs(const float* m, int64_t step, Sixteen (*out)[2]) {
    outputs_row<0>(m, step, out[0]);
    outputs_row<1>(m, step, out[1]);
  }

  // Writes A d Aᵀ of 2×2 gradients of outputs, as `inputs` does.
  template <class At>
  CDRL_TRANSFORM static void gradients(const At& at, float* out, int64_t step) {
    const Sixteen d[4] = {Sixteen::load(at(0, 0)), Sixteen::load(at(0, 1)), Sixteen::load(at(1, 0)),
                          Sixteen::load(at(1, 1))};
    gradients_row<0>(d, out, step);
    gradients_row<1>(d, out, step);
    gradients_row<2>(d, out, step);
    gradients_row<3>(d, out, step);
  }

  // G times a column of three weights, and Gᵀ times a column of four products.
  static void taps(const Sixteen* w, Sixteen* out) {
    const Sixteen outer = w[0].plus(w[2]);
    out[0] = w[0];
    out[1] = outer.plus(w[1]).times(0.5f);
    out[2] = outer.minus(w[1]).times(0.5f);
    out[3] = w[2];
  }
  static void gather_taps(const Sixteen* u, Sixteen* out) {
    const Sixteen sum = u[1].plus(u[2]).times(0.5f);
    out[0] = u[0].plus(sum);
    out[1] = u[1].minus(u[2]).times(0.5f);
    out[2] = u[3].plus(sum);
  }

 private:
  template <int i>
  static Sixteen in_row(const Sixteen& a, const Sixteen& b, const Sixteen& c, const Sixteen& d) {
    if constexpr (i == 0) return a.minus(c);
    if constexpr (i == 1) return b.plus(c);
    if constexpr (i == 2) return c.minus(b);
    return b.minus(d);
  }
  template <int i>
  static Sixteen out_row(const Sixteen& a, const Sixteen& b, const Sixteen& c, const Sixteen& d) {
    return i == 0 ? a.plus(b).plus(c) : b.minus(c).minus(d);
  }
  template <int i>
  static Sixteen spread_row(const Sixteen& a, const Sixteen& b) {
    if constexpr (i == 0) return a;
    if constexpr (i == 1) return a.plus(b);
    if constexpr (i == 2) return a.minus(b);
    return b.times(-1.0f);
  }

  template <int i, class At, class Element>
  static void inputs_row(const At& at, Element* out, int64_t step) {
    Sixteen row[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      row[j] = in_row<i>(Sixteen::load(at(0, j)), Sixteen::load(at(1, j)), Sixteen::load(at(2, j)),
                         Sixteen::load(at(3, j)));
    }
    in_row<0>(row[0], row[1], row[2], row[3]).put(out + 4 * i * step);
    in_row<1>(row[0], row[1], row[2], row[3]).put(out + (4 * i + 1) * step);
    in_row<2>(row[0], row[1], row[2], row[3]).put(out + (4 * i + 2) * step);
    in_row<3>(row[0], row[1], row[2], row[3]).put(out + (4 * i + 3) * step);
  }
  template <int i>
  static void outputs_row(const float* m, int64_t step, Sixteen* out) {
    Sixteen row[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const float* column = m + j * step;
      row[j] = out_row<i>(Sixteen::load(column), Sixteen::load(column + 4 * step),
                          Sixteen::load(column + 8 * step), Sixteen::load(column + 12 * step));
    }
    out[0] = out_row<0>(row[0], row[1], row[2], row[3]);
    out[1] = out_row<1>(row[0], row[1], row[2], row[3]);
  }
  template <int i>
  static void gradients_row(const Sixteen* d, float* out, int64_t step) {
    const Sixteen left = spread_row<i>(d[0], d[2]), right = spread_row<i>(d[1], d[3]);
    spread_row<0>(left, right).put(out + 4 * i * step);
    spread_row<1>(left, right).put(out + (4 * i + 1) * step);
    spread_row<2>(left, right).put(out + (4 * i + 2) * step);
    spread_row<3>(left, right).put(out + (4 * i + 3) * step);
  }
};

// Uses the points 0, ±a, ±b and ∞ with a = √½ and b = √2: the error is twice that of direct
// convolution; with the usual points 0, ±1, ±2 it is four times. For float32 alone. Computes one
// register of channels at a time.
class ByFour {
  using V = Vector;
  using F = V::Float;
  static constexpr int kWidth = 2 * V::kLanes;  // channels per register

 public:
  static constexpr int kOut = 4, kIn = 6, kProducts = 36;

  template <class At>
  CDRL_TRANSFORM static void inputs(const At& at, float* out, int64_t step) {
    transform<6, 6, in_column>(at, [=](int i, int j) { return out + (6 * i + j) * step; });
  }
  template <class At>
  CDRL_TRANSFORM static void gradients(const At& at, float* out, int64_t step) {
    transform<4, 6, spread_column>(at, [=](int i, int j) { return out + (6 * i + j) * step; });
  }
  CDRL_TRANSFORM static void outputs(const float* m, int64_t step, Sixteen (*out)[4]) {
    transform<6, 4, out_column>([=](int i, int j) { return m + (6 * i + j) * step; },
                                [=](int i, int j) { return reinterpret_cast<float*>(&out[i][j]); });
  }

  static void taps(const Sixteen* w, Sixteen* out) {
    const Sixteen near = w[0].plus(w[2].times(0.5f)).times(-2.0f / 3);
    const Sixteen far = w[0].plus(w[2].times(2.0f)).times(1.0f / 6);
    const Sixteen by_a = w[1].times(-2.0f / 3 * kA), by_b = w[1].times(1.0f / 6 * kB);
    out[0] = w[0];
    out[1] = near.plus(by_a);
    out[2] = near.minus(by_a);
    out[3] = far.plus(by_b);
    out[4] = far.minus(by_b);
    out[5] = w[2];
  }
  static void gather_taps(const Sixteen* u, Sixteen* out) {
    const Sixteen near = u[1].plus(u[2]), far = u[3].plus(u[4]);
    out[0] = u[0].minus(near.times(2.0f / 3)).plus(far.times(1.0f / 6));
    out[1] = u[3].minus(u[4]).times(kB / 6).minus(u[1].minus(u[2]).times(2.0f / 3 * kA));
    out[2] = far.minus(near).times(1.0f / 3).plus(u[5]);
  }

 private:
  static constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;

  static F scaled(F a, float factor, F b) { return V::fma(a, V::number(factor), b); }

  // Bᵀ times a column.
  static void in_column(const F* d, F* out) {
    const F near = scaled(d[2], -2.0f, d[4]), by_a = scaled(d[1], -2.0f, d[3]);
    const F far = scaled(d[2], -0.5f, d[4]), by_b = scaled(d[1], -0.5f, d[3]);
    out[0] = scaled(d[2], -2.5f, V::plus(d[0], d[4]));
    out[1] = scaled(by_a, kA, near);
    out[2] = scaled(by_a, -kA, near);
    out[3] = scaled(by_b, kB, far);
    out[4] = scaled(by_b, -kB, far);
    out[5] = scaled(d[3], -2.5f, V::plus(d[1], d[5]));
  }
  // Aᵀ times a column.
  static void out_column(const F* m, F* out) {
    const F near = V::plus(m[1], m[2]), by_a = V::times(V::minus(m[1], m[2]), V::number(kA));
    const F far = V::plus(m[3], m[4]), by_b = V::times(V::minus(m[3], m[4]), V::number(kB));
    out[0] = V::plus(V::plus(m[0], near), far);
    out[1] = V::plus(by_a, by_b);
    out[2] = scaled(far, 2.0f, V::times(near, V::number(0.5f)));
    out[3] = scaled(by_b, 2.0f, scaled(by_a, 0.5f, m[5]));
  }
  // A times a column.
  static void spread_column(const F* y, F* out) {
    const F near = scaled(y[2], 0.5f, y[0]), by_a = scaled(y[3], 0.5f, y[1]);
    const F far = scaled(y[2], 2.0f, y[0]), by_b = scaled(y[3], 2.0f, y[1]);
    out[0] = y[0];
    out[1] = scaled(by_a, kA, near);
    out[2] = scaled(by_a, -kA, near);
    out[3] = scaled(by_b, kB, far);
    out[4] = scaled(by_b, -kB, far);
    out[5] = y[3];
  }

  // Applies `column` to the columns of a matrix with `ins` rows, then to the rows of the result.
  // Reads from at(row, column), writes to to(row, column).
  template <int ins, int outs, void (*column)(const F*, F*), class At, class To>
  static void transform(const At& at, const To& to) {
    for (int lane = 0; lane < kBlock; lane += kWidth) {
      F rows[outs][ins];
#pragma GCC unroll 6
      for (int j = 0; j < ins; ++j) {
        F in[ins], out[outs];
#pragma GCC unroll 6
        for (int i = 0; i < ins; ++i) in[i] = V::load(at(i, j) + lane);
        column(in, out);
#pragma GCC unroll 6
        for (int i = 0; i < outs; ++i) rows[i][j] = out[i];
      }
#pragma GCC unroll 6
      for (int i = 0; i < outs; ++i) {
        F out[outs];
        column(rows[i], out);
#pragma GCC unroll 6
        for (int j = 0; j < outs; ++j) V::store(to(i, j) + lane, out[j]);
      }
    }
  }
};

}  // namespace
