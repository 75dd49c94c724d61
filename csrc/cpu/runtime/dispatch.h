// The CPU kernels as the rest of the library sees them: one table for each instruction set.
#pragma once

#include <string>
#include <vector>

#include "common/arguments.h"
#include "cpu/resnet/network.h"
#include "cpu/train/conv3x3.h"
#include "cpu/train/norm_silu.h"
#include "cpu/unet/network.h"

namespace cdrl::cpu {

// A part of a (batch, elements) array: samples [sample_begin, sample_end), of each the blocks of four
// elements [block_begin, block_end).
struct Part {
  int64_t sample_begin, sample_end, block_begin, block_end;
};

constexpr int64_t kNone = INT64_MAX;

// See cpu/mlp/chain.h.
struct MlpProgram;
struct MlpCall;

struct Kernels {
  const char* name;
  // The first sample of the part that has left the finite numbers, or kNone.
  int64_t (*langevin_step)(const StepArguments&, const Part&);
  void (*normal)(const NormalArguments&, const Part&);
  // Energies and gradients of a few samples, on one thread.
  void (*resnet_group)(const ResNetNetwork&, const ResNetGroup&, ResNetBuffers&);
  // Samples [begin, begin + count) of a call; the smallest draw · 2^31 + position of one that has
  // left the finite numbers, or kNone.
  int64_t (*mlp_chain)(const MlpProgram&, const MlpCall&, int64_t begin, int count, float* room);
  // A U-Net's output of a few samples, on one thread.
  void (*unet_group)(const UNetNetwork&, const UNetGroup&, UNetBuffers&);
  // A part of a convolution with packed weights, and of its weight's gradient, added to transformed
  // `sums`, which the bias's follows; and what goes before and after, for the n-th block of outputs.
  // Transposed weights are those of the input's gradient.
  void (*conv3x3_part)(const ConvPart&, const float* weights, const float* bias, float* y);
  void (*conv3x3_weight_part)(const ConvPart&, const float* y_grad, float* sums);
  void (*conv3x3_pack)(const ConvShape&, const float* weight, bool transposed, int n, float* to);
  void (*conv3x3_unpack)(const ConvShape&, const float* sums, int n, float* weight_grad);
  // A norm of one sample; and its gradients, those in weight and bias to its own row of two arrays.
  void (*norm_silu_sample)(const NormSilu&, int64_t sample, float* y, float* memory);
  void (*norm_silu_gradients_sample)(const NormSilu&, const NormSiluGradients&, int64_t sample,
                                     float* weight_grads, float* bias_grads, float* memory);
  // Runs the inner loop on data in the nearest cache; returns the operations done.
  double (*products)(bool bfloat16, int repeats);
};

// What this machine can run, best first.
const std::vector<Kernels>& variants();
// The variant in use; set by name, which is an error for one that is not in variants().
const Kernels& kernels();
void use_variant(const std::string& name);

// Whole arrays, on at most `threads` threads.
void langevin_step(StepArguments arguments, int threads);
void normal(const NormalArguments& arguments, int threads);
// Operations a second that `threads` threads reach in the inner loop of matrix products.
double peak_flops(bool bfloat16, int threads);

}  // namespace cdrl::cpu
