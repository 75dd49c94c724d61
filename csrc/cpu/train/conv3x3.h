// 3×3 convolutions with zero borders for training: results and all gradients.
#pragma once

#include <cstdint>

#include "cpu/conv/patches.h"

namespace cdrl::cpu {

// Images are (batch, height, width, channels) with channels a multiple of 16; weights (out, in, 3,
// 3).
struct ConvShape {
  int64_t batch;
  int height, width, in, out;

  int side() const { return patch_side(height, width, false); }
  int64_t patches() const {
    return batch * patches_along(height, side()) * patches_along(width, side());
  }
  // Floats of the weight's gradient, transformed.
  int64_t products() const { return int64_t(products_of(side())) * in * out; }
  // Floats of packed weights, for results or for the gradient of the inputs.
  int64_t packed() const {
    const int ins = blocks_of(in), outs = blocks_of(out);
    const int64_t forward = weights_count(side(), outs, ins);
    const int64_t backward = weights_count(side(), ins, outs);
    return forward < backward ? backward : forward;
  }
  ConvShape transposed() const { return {batch, height, width, out, in}; }
};

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
