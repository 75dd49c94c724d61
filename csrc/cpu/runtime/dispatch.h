// Chooses an instruction set at run time: one table of kernels per variant that was compiled.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cdrl {

struct NormalArguments;  // common/arguments.h
struct StepArguments;

namespace cpu {

// The kernels' arguments are declared only, so that the table depends on no network. Callers
// include the header that defines them.
struct Part;        // noise/noise.h
struct MlpProgram;  // mlp/chain.h
struct MlpCall;
struct ResNetNetwork;  // resnet/network.h
struct ResNetGroup;
struct ResNetBuffers;
struct UNetNetwork;  // unet/network.h
struct UNetGroup;
struct UNetBuffers;
struct ConvShape;  // train/conv3x3.h
struct ConvPart;
struct NormSilu;  // train/norm_silu.h
struct NormSiluGradients;

// The kernels of one variant. Each runs on the calling thread; the .cpp file next to a kernel's
// file shares its work out among threads.
struct Kernels {
  const char* name;
  // One Langevin update of a part. Returns the first sample that became non-finite, or kNone.
  int64_t (*langevin_step)(const StepArguments&, const Part&);
  // The noise of a part.
  void (*normal)(const NormalArguments&, const Part&);
  // Energies and gradients of a group of samples.
  void (*resnet_group)(const ResNetNetwork&, const ResNetGroup&, ResNetBuffers&);
  // All steps of samples [begin, begin + count). Returns the smallest draw · 2^31 + position of a
  // sample that became non-finite, or kNone.
  int64_t (*mlp_chain)(const MlpProgram&, const MlpCall&, int64_t begin, int count,
                       float* workspace);
  // Outputs of a U-Net for a group of samples.
  void (*unet_group)(const UNetNetwork&, const UNetGroup&, UNetBuffers&);
  // A convolution of a part of the patches, with packed weights.
  void (*conv3x3_part)(const ConvPart&, const float* weights, const float* bias, float* y);
  // Adds a part's weight gradient, transformed, and after it the bias gradient to `sums`.
  void (*conv3x3_weight_part)(const ConvPart&, const float* y_grad, float* sums);
  // Packs the weights of output block `n`; the transposed ones compute the input's gradient.
  void (*conv3x3_pack)(const ConvShape&, const float* weight, bool transposed, int n, float* to);
  // Transforms the sums of output block `n` back to the weight's gradient.
  void (*conv3x3_unpack)(const ConvShape&, const float* sums, int n, float* weight_grad);
  // Norm and SiLU of one sample.
  void (*norm_silu_sample)(const NormSilu&, int64_t sample, float* y, float* workspace);
  // Their gradients; the sample writes its own row of `weight_grads` and `bias_grads`.
  void (*norm_silu_gradients_sample)(const NormSilu&, const NormSiluGradients&, int64_t sample,
                                     float* weight_grads, float* bias_grads, float* workspace);
  // Repeats the inner loop of matrix products on data in the L1 cache. Returns the operations done.
  double (*peak_loop)(bool bfloat16, int repeats);
};

// The variants that this machine can run, best first.
const std::vector<Kernels>& variants();
// The variant in use: the best one, unless use_variant chose another.
const Kernels& kernels();
// Chooses a variant by name. Throws std::invalid_argument for a name that is not in variants().
void use_variant(const std::string& name);

}  // namespace cpu
}  // namespace cdrl
