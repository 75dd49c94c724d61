// An energy made of linear maps, activations and sums, as the kernels read it, and what to do.
//
// Buffers hold pre-activations; buffer 0 is the state. A map adds weight · activation(source) +
// bias to its target, a sum adds the source itself; the value is head · activation(last buffer) +
// constant.
// In memory a buffer is [block of 16 features][sample][16], its last block filled up with zeros.
#pragma once

#include <cstdint>

#include "common/arguments.h"
#include "cpu/runtime/dispatch.h"

namespace cdrl {

enum class Activation : int { kIdentity, kLeaky, kSilu, kTanh, kSoftplus, kSigmoid };

namespace cpu {

// Where a result is added to what is there already, and to what.
constexpr int kNothing = -1;

struct MlpStep {
  int source, target;
  Activation activation;
  float leak;            // slope of kLeaky below zero
  bool linear;           // else a sum, without weights
  void* forward;         // weights packed as tile.h wants them
  void* backward;        // the transposed ones
  float* bias;           // of the target's padded width, or null
  int64_t row;           // the bias's first column in `rows`, or -1
  bool single;           // weights and inputs in float32 whatever the precision
  bool skipped;          // a sum that the next step does as well
  int previous;          // buffer that the result is added to, kNothing for none
  bool first_gradient;   // the first to write the source's gradient
};

struct MlpProgram {
  const MlpStep* steps;
  int count, buffers;
  const int* widths;         // features of each buffer
  const int64_t* values;     // where each begins, in floats a sample
  const int64_t* gradients;  // likewise its gradient, which may share memory with an earlier one
  float* head;               // of the last buffer's padded width
  Activation activation;
  float leak, constant;
  bool half;        // bfloat16 for the matrix products, but for those of the state
  bool thin;        // the state has few features, and maps alone read it, without activation
  int64_t operand;  // floats a sample of the largest input of a product
  int64_t room;     // floats a sample of all that a call needs
  int64_t cost;     // about how many multiplications a sample and step take, forward
};

struct MlpCall {
  float* y;             // (batch, dim), changed by a chain
  const float* anchor;  // may be null
  const float* table;   // may be null; else (4, batch) as in StepArguments
  const float* rows;    // biases that depend on level or sample; may be null
  int64_t rows_stride;  // 0 where one row serves all
  float* value;         // (batch,) or null      } a single gradient
  float* gradient;      // (batch, dim), or null } instead of a chain
  int64_t batch, steps;
  uint64_t seed, first_sample;
  uint32_t draw;
  float drift, pull, noise_std, rescale;
};

// At most this many features of the state are `thin`.
constexpr int kThin = 4;

// Whole batches, on at most `threads` threads. Returns the smallest draw · 2^31 + position of a
// sample that left the finite numbers, or kNone.
int64_t mlp_chain(const MlpProgram& program, const MlpCall& call, int threads);

}  // namespace cpu
}  // namespace cdrl
