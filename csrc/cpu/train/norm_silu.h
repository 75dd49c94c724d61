// Group norm with scale and shift, and SiLU, for training: results and gradients.
#pragma once

#include <cstdint>

#include "common/block.h"

namespace cdrl::cpu {

// y = act(n (1 + scale) + shift) with n = weight (x - mean) / deviation + bias. Every group of a
// sample's channels has its mean and deviation; act is SiLU or the identity.
struct NormSilu {
  int64_t batch, positions;
  int channels, groups;  // `channels` is a multiple of 16 and of `groups`
  bool activate;
  const float *x, *weight, *bias;  // x is (batch, positions, channels)
  const float* row;                // (batch, 2 channels): scale, then shift; or null
  float* moments;                  // (batch, 2 groups): means, then reciprocal deviations
};

// Gradients of a loss: `y` is read, the others are written.
struct NormSiluGradients {
  const float* y;
  float *x, *weight, *bias;
  float* row;  // null where NormSilu::row is
};

// Both run on at most `threads` threads; results don't depend on how many. train_norm_silu writes
// `moments`, which train_norm_silu_gradients reads.
void train_norm_silu(const NormSilu& norm, float* y, int threads);
void train_norm_silu_gradients(const NormSilu& norm, const NormSiluGradients& to, int threads);

// Floats of the workspace of one thread.
static inline int64_t norm_silu_workspace(const NormSilu& norm) {
  return 6 * int64_t(norm.channels);
}

}  // namespace cdrl::cpu
