// Group norm with scale and shift, and SiLU, whose weights are being learned: results and gradients.
#pragma once

#include <cstdint>

#include "common/block.h"

namespace cdrl::cpu {

// y = act(n (1 + scale) + shift), n = weight (x - mean) / deviation + bias, a mean and a deviation for
// each group of a sample's channels; act is SiLU or the identity.
struct NormSilu {
  int64_t batch, positions;
  int channels, groups;  // channels a multiple of 16 and of groups
  bool activate;
  const float *x, *weight, *bias;  // x is (batch, positions, channels)
  const float* row;                // (batch, 2 channels), scale then shift, or null
  float* moments;                  // (batch, 2 groups): means, then reciprocal deviations
};

// Gradients of a loss whose gradient in y is given.
struct NormSiluGradients {
  const float* y;
  float *x, *weight, *bias;
  float* row;  // null where there is no row
};

// On at most `threads` threads; results don't depend on how many. The first fills `moments`, which the
// second reads.
void train_norm_silu(const NormSilu& norm, float* y, int threads);
void train_norm_silu_gradients(const NormSilu& norm, const NormSiluGradients& to, int threads);

// Numbers that one sample needs, on one thread.
static inline int64_t norm_silu_memory(const NormSilu& norm) { return 6 * int64_t(norm.channels); }

}  // namespace cdrl::cpu
