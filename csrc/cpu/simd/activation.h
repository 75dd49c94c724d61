// Activations of a multilayer perceptron and their derivatives, one register at a time.
//
// `value` and `slope` (the derivative) are functions of the pre-activation alone. NaN stays NaN.
#pragma once

#include "common/arguments.h"
#include "common/philox.h"
#include "cpu/simd/vector.h"

namespace {

using cdrl::Activation;

// exp(x) with relative error 1e-7; infinity above 88.37 and 2^-126 below -87.33.
inline Vector::Float exponential(Vector::Float x) {
  using V = Vector;
  constexpr float terms[] = {1.0f,        1.0f,         0.49999994f,  0.16666521f,
                             0.04166839f, 0.008368710f, 0.0013814610f};
  x = V::at_most(V::at_least(x, -87.33f), 88.5f);
  const V::Float shifted = V::fma(x, V::number(1.44269504f), V::number(cdrl::kRound));
  const V::Float n = V::minus(shifted, V::number(cdrl::kRound));
  // ln 2 is split in two parts so that n times the first part is exact.
  V::Float r = V::fnma(n, V::number(0.693359375f), x);
  r = V::fnma(n, V::number(-2.12194440e-4f), r);
  V::Float p = V::number(terms[6]);
  for (int i = 5; i >= 0; --i) p = V::fma(p, r, V::number(terms[i]));
  // n = 128 gives the bits of infinity.
  return V::times(p, V::floats(V::to_exponent(V::add(V::bits(shifted), V::word(127)))));
}

// ln(1 + u) for u in [0, 1] with relative error 1e-7.
inline Vector::Float log_of_one_plus(Vector::Float u) {
  using V = Vector;
  constexpr float terms[] = {1.0f,         -0.49999931f,  0.33330512f, -0.24958585f,
                             0.19695392f,  -0.15355369f,  0.10680511f, -0.05766400f,
                             0.020204348f, -0.0033184201f};
  V::Float p = V::number(terms[9]);
  for (int i = 8; i >= 0; --i) p = V::fma(p, u, V::number(terms[i]));
  return V::times(p, u);
}

inline Vector::Float logistic(Vector::Float x) {
  using V = Vector;
  return V::inverse(V::plus(V::number(1.0f), exponential(V::minus(V::number(0.0f), x))));
}

inline Vector::Float hyperbolic_tangent(Vector::Float x) {
  using V = Vector;
  constexpr float terms[] = {-0.33333272f, 0.13331152f, -0.053714104f, 0.020551711f,
                             -0.0056039053f};
  const V::Float square = V::times(x, x);
  V::Float p = V::number(terms[4]);
  for (int i = 3; i >= 0; --i) p = V::fma(p, square, V::number(terms[i]));
  // Near zero the quotient would lose its leading digits by cancellation.
  const V::Float near = V::fma(V::times(p, square), x, x);
  const V::Float grown = V::plus(exponential(V::plus(x, x)), V::number(1.0f));
  const V::Float far = V::fnma(V::number(2.0f), V::inverse(grown), V::number(1.0f));
  return V::if_positive(V::minus(square, V::number(0.4f)), far, near);
}

template <Activation kind>
struct Activated {
  using F = Vector::Float;
  static constexpr bool kIsIdentity = kind == Activation::kIdentity;

  static F value(F x, F leak) {
    using V = Vector;
    if constexpr (kind == Activation::kLeaky) return V::if_positive(x, x, V::times(x, leak));
    if constexpr (kind == Activation::kSilu) return V::times(x, logistic(x));
    if constexpr (kind == Activation::kTanh) return hyperbolic_tangent(x);
    if constexpr (kind == Activation::kSigmoid) return logistic(x);
    if constexpr (kind == Activation::kSoftplus) {
      const F opposite = V::minus(V::number(0.0f), x);
      const F rest = log_of_one_plus(exponential(V::if_positive(x, opposite, x)));
      return V::plus(V::if_positive(x, x, V::number(0.0f)), rest);
    }
    return x;
  }

  static F slope(F x, F leak) {
    using V = Vector;
    const F one = V::number(1.0f);
    if constexpr (kind == Activation::kLeaky) return V::if_positive(x, one, leak);
    if constexpr (kind == Activation::kSilu) {
      const F s = logistic(x);
      return V::times(s, V::fma(x, V::minus(one, s), one));
    }
    if constexpr (kind == Activation::kTanh) {
      const F t = hyperbolic_tangent(x);
      return V::fnma(t, t, one);
    }
    if constexpr (kind == Activation::kSigmoid) {
      const F s = logistic(x);
      return V::times(s, V::minus(one, s));
    }
    if constexpr (kind == Activation::kSoftplus) return logistic(x);
    return one;
  }
};

// Calls `function` with the Activated<kind> of a kind known at run time.
template <class Function>
inline void with_activation(Activation kind, Function function) {
  switch (kind) {
    case Activation::kLeaky:
      return function(Activated<Activation::kLeaky>());
    case Activation::kSilu:
      return function(Activated<Activation::kSilu>());
    case Activation::kTanh:
      return function(Activated<Activation::kTanh>());
    case Activation::kSoftplus:
      return function(Activated<Activation::kSoftplus>());
    case Activation::kSigmoid:
      return function(Activated<Activation::kSigmoid>());
    default:
      return function(Activated<Activation::kIdentity>());
  }
}

}  // namespace
