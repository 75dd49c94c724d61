// 3×3 convolutions with zero borders whose weights are being learned: results and all gradients.
#pragma once

#include <cstdint>

#include "cpu/block.h"

namespace cdrl::cpu {

// Images are (batch, height, width, channels), channels multiples of 16; weights (out, in, 3, 3).
struct ConvShape {
  int64_t batch;
  int height, width, in, out;

  // Of 2×2 results (winograd.h).
  int64_t patches() const { return batch * ((height + 1) / 2) * ((width + 1) / 2); }
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
