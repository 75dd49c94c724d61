// Langevin chains on an energy made of linear maps, activations and sums: the energy as kernels
// read it, and a call's arguments.
//
// Buffers store pre-activations; buffer 0 is the state. A map adds weight · activation(source) +
// bias to its target, a sum adds the source itself. The energy's value is head · activation(last
// buffer) + constant. In memory a buffer is [block of 16 features][sample][16]; its last block is
// padded with zeros.
#pragma once

#include <cstdint>

#include "common/arguments.h"

namespace cdrl::cpu {

constexpr int kNothing = -1;  // for MlpStep::previous

struct MlpStep {
  int source, target;
  Activation activation;
  float leak;           // slope of kLeaky below zero
  bool linear;          // a map; else a sum, without weights
  void* forward;        // weights, packed for tile.h
  void* backward;       // the transposed weights, packed
  float* bias;          // of the target's padded width, or null
  int64_t row;          // first column of the bias in a call's `rows`, or -1
  bool single;          // float32 weights and inputs, whatever the precision
  bool skipped;         // a sum that the next step includes
  int previous;         // the buffer that the result is added to, or kNothing
  bool first_gradient;  // the first step that writes the source's gradient: it assigns, others add
};

struct MlpProgram {
  const MlpStep* steps;
  int count, buffers;
  const int* widths;         // features of each buffer
  const int64_t* values;     // offset of each buffer, in floats per sample
  const int64_t* gradients;  // offset of its gradient, which may reuse memory of an earlier one
  float* head;               // of the last buffer's padded width
  Activation activation;
  float leak, constant;
  bool half;          // bfloat16 matrix products, except the state's
  bool thin;          // the state has few features, and only maps without activation read it
  int64_t operand;    // floats per sample of the largest input of a product
  int64_t workspace;  // floats per sample of all that a call needs
  int64_t cost;       // about how many multiplications a forward pass takes per sample
};

struct MlpCall {
  float* y;             // (batch, dim); a chain updates it in place
  const float* anchor;  // may be null
  const float* table;   // null, or (4, batch) as in StepArguments
  const float* rows;    // biases that depend on the level or the sample; may be null
  int64_t rows_stride;  // 0 where all samples share one row
  float* value;         // (batch,) or null      } with either of these, the call computes one value
  float* gradient;      // (batch, dim), or null } and gradient instead of a chain
  int64_t batch, steps;
  uint64_t seed, first_sample;
  uint32_t draw;
  float drift, pull, noise_std, rescale;
};

// A state of at most this many features is `thin`.
constexpr int kThin = 4;

// Runs a whole batch on at most `threads` threads. Returns the smallest draw · 2^31 + position of a
// sample that became non-finite, or kNone (noise/noise.h).
int64_t mlp_chain(const MlpProgram& program, const MlpCall& call, int threads);

}  // namespace cdrl::cpu
