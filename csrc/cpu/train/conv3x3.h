// 3×3 convolutions with zero borders whose weights are being learned: results and all gradients.
#pragma once

#include <cstdint>

#include "cpu/conv/patches.h"

namespace cdrl::cpu {

// Images are (batch, height, width, channels), channels multiples of 16; weights (out, in, 3, 3).
struct ConvShape {
  int64_t batch;
  int height, width, in, out;

  int side() const { return patch_side(height, width, false); }
  int64_t patches() const {
    return batch * patches_along(height, side()) * patches_along(width, side());
  }
  // Numbers of the weight's gradient, transformed.
  int64_t products() const { return int64_t(products_of(side())) * in * out; }
  // And of packed weights, for results or for the gradient of the inputs.
  int64_t packed() const {
    const int ins = blocks_of(in), outs = blocks_of(out);
    const int64_t forward = weights_count(side(), outs, ins);
    const int64_t backward = weights_count(side(), ins, outs);
    return forward < backward ? backward : forward;
  }
  ConvShape transposed() const { return {batch, height, width, out, in}; }
};

// y = w * x + bias, on at most `threads` threads; the result doesn't depend on how many.
void train_conv3x3(const ConvShape& shape, const float* x, const float* weight, const float* bias,
                   float* y, int threads);

// Gradients of a loss whose gradient in y is given.
struct ConvGradients {
  const float* y;
  float* x;  // may be null
  float *weight, *bias;
};

// The weight's and the bias's are sums over threads, and their rounding depends on their number.
void train_conv3x3_gradients(const ConvShape& shape, const float* x, const float* weight,
                             const ConvGradients& to, int threads);

// Patches [first, end) of all samples', on one thread.
struct ConvPart {
  ConvShape shape;
  int64_t first, end;
  const float* x;
  const float* zeros;  // as many as there are channels
  float* memory;       // `part_memory` numbers
};

}  // namespace cdrl::cpu
