// What the kernels are asked to do, as plain addresses and sizes: no tensor library is linked.
#pragma once

#include <cstdint>

namespace cdrl {

enum class GradType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Where in the noise stream to draw. `state`, if given, holds (seed, draw, first sample, arrivals) in
// the memory of the device that runs the kernel; it is read instead, and its draw advanced by one.
struct Stream {
  uint64_t seed;
  uint64_t first_sample;
  int64_t* state;
  uint32_t draw;
};

// out = rescale (x + drift grad - pull (x - anchor) + noise_std z), arrays (batch, elements).
struct StepArguments {
  float* out;
  const float* x;
  const void* grad;
  const float* anchor;  // may be null: no recovery term
  const float* table;   // may be null; else (4, batch): drift, pull, noise_std, rescale
  int64_t* first_bad;   // may be null
  int64_t batch, elements;
  Stream stream;
  float drift, pull, noise_std, rescale;  // used where there is no table
  GradType grad_type;
};

struct NormalArguments {
  float* out;
  int64_t batch, elements;
  Stream stream;
};

// Blocks of four elements, which the noise stream gives at once. Units compiled for different
// processors share this text and must not share its code.
static inline int64_t fours_of(int64_t elements) { return (elements + 3) / 4; }

}  // namespace cdrl
