// The CPU kernels as the rest of the library sees them: one table for each instruction set.
#pragma once

#include <string>
#include <vector>

#include "common/arguments.h"
#include "cpu/resnet_network.h"
#include "cpu/unet_network.h"

namespace cdrl::cpu {

// A part of a (batch, elements) array: samples [sample_begin, sample_end), of each the blocks of four
// elements [block_begin, block_end).
struct Part {
  int64_t sample_begin, sample_end, block_begin, block_end;
};

constexpr int64_t kNone = INT64_MAX;

struct Kernels {
  const char* name;
  // The first sample of the part that has left the finite numbers, or kNone.
  int64_t (*langevin_step)(const StepArguments&, const Part&);
  void (*normal)(const NormalArguments&, const Part&);
  // Energies and gradients of a few samples, on one thread.
  void (*resnet_group)(const ResNetNetwork&, const ResNetGroup&, ResNetBuffers&);
  // The same of a U-Net's output.
  void (*unet_group)(const UNetNetwork&, const UNetGroup&, UNetBuffers&);
};

// What this machine can run, best first.
const std::vector<Kernels>& variants();
// The variant in use; set by name, which is an error for one that is not in variants().
const Kernels& kernels();
void use_variant(const std::string& name);

// Whole arrays, on at most `threads` threads.
void langevin_step(StepArguments arguments, int threads);
void normal(const NormalArguments& arguments, int threads);
bool has_openmp();

}  // namespace cdrl::cpu
