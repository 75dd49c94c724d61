// The noise stream and the Langevin update on whole arrays, and the parts that their kernels take.
#pragma once

#include <cstdint>

#include "common/arguments.h"

namespace cdrl::cpu {

// A part of a (batch, elements) array: samples [sample_begin, sample_end), and of each of them the
// blocks of four elements [block_begin, block_end).
struct Part {
  int64_t sample_begin, sample_end, block_begin, block_end;
};

// Returned where every sample stayed finite.
constexpr int64_t kNone = INT64_MAX;

// Both run on at most `threads` threads; the result doesn't depend on how many.
void langevin_step(StepArguments arguments, int threads);
void normal(const NormalArguments& arguments, int threads);

}  // namespace cdrl::cpu
