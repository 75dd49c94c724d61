// 3×3 convolutions with zero borders for training: results and all gradients.
#pragma once

#include <cstdint>

#include "cpu/conv/patches.h"

namespace cdrl::cpu {

// Images are (batch, height, width, channels), weights (out, in, 3, 3); `in` and `out` are
// multiples of 16.
struct ConvShape {
  int64_t batch;
  int height, width, in, out;
};

// Side of the patches.
static inline int side_of(const ConvShape& s) { return patch_side(s.height, s.width, false); }

// Floats of the weight's gradient, transformed.
static inline int64_t weight_products(const ConvShape& s) {
  return int64_t(products_of(side_of(s))) * s.in * s.out;
}

// Computes y = w * x + bias on at most `threads` threads; the result doesn't depend on how many.
void train_conv3x3(const ConvShape& shape, const float* x, const float* weight, const float* bias,
                   float* y, int threads);

// Gradients of a loss: `y` is read, the others are written.
struct ConvGradients {
  const float* y;
  float* x;  // may be null
  float *weight, *bias;
};

// The gradients of weight and bias are sums over threads, so their rounding depends on `threads`.
void train_conv3x3_gradients(const ConvShape& shape, const float* x, const float* weight,
                             const ConvGradients& to, int threads);

// Patches [first, end) among those of all samples, on one thread.
struct ConvPart {
  ConvShape shape;
  int64_t first, end;
  const float* x;
  const float* zeros;  // one per channel, read beyond the borders
  float* workspace;    // transforms and products of kPatches patches
};

}  // namespace cdrl::cpu
