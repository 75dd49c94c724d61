// Arguments of the kernels that CPU and CUDA share, as plain addresses and sizes, so that the
// module links to no tensor library.
#pragma once

#include <cstdint>

namespace cdrl {

// Element type of a gradient that the update reads. Python passes the numbers.
enum class GradType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Activation of a multilayer perceptron. Python passes the numbers.
enum class Activation : int { kIdentity, kLeaky, kSilu, kTanh, kSoftplus, kSigmoid };

// A position in the noise stream. A non-null `state` points to (seed, draw, first sample, arrivals)
// in the memory of the device that runs the kernel: the kernel reads these instead and advances the
// draw by one, so that a replayed CUDA graph draws new noise.
struct Stream {
  uint64_t seed;
  uint64_t first_sample;
  int64_t* state;
  uint32_t draw;
};

// out = rescale (x + drift grad - pull (x - anchor) + noise_std z) on arrays of (batch, elements).
struct StepArguments {
  float* out;
  const float* x;
  const void* grad;
  const float* anchor;  // null without a recovery term
  const float* table;   // null, or (4, batch): drift, pull, noise_std, rescale per sample
  int64_t* first_bad;   // null, or lowered to draw · 2^31 + sample where one becomes non-finite
  int64_t batch, elements;
  Stream stream;
  float drift, pull, noise_std, rescale;  // read where `table` is null
  GradType grad_type;
};

struct NormalArguments {
  float* out;
  int64_t batch, elements;
  Stream stream;
};

// Number of blocks of four elements, the unit of the noise stream. `static`, because files compiled
// for different instruction sets must not share one copy of its code.
static inline int64_t fours_of(int64_t elements) { return (elements + 3) / 4; }

}  // namespace cdrl
