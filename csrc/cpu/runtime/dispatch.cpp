#include "cpu/runtime/dispatch.h"

#include <stdexcept>

namespace cdrl::cpu {

#define CDRL_DECLARE(variant)                                                                 \
  namespace variant {                                                                         \
  int64_t langevin_step(const StepArguments&, const Part&);                                   \
  void normal(const NormalArguments&, const Part&);                                           \
  int64_t mlp_chain(const MlpProgram&, const MlpCall&, int64_t, int, float*);                 \
  void resnet_group(const ResNetNetwork&, const ResNetGroup&, ResNetBuffers&);                \
  void unet_group(const UNetNetwork&, const UNetGroup&, UNetBuffers&);                        \
  void conv3x3_part(const ConvPart&, const float*, const float*, float*);                     \
  void conv3x3_weight_part(const ConvPart&, const float*, float*);                            \
  void conv3x3_pack(const ConvShape&, const float*, bool, int, float*);                       \
  void conv3x3_unpack(const ConvShape&, const float*, int, float*);                           \
  void norm_silu_sample(const NormSilu&, int64_t, float*, float*);                            \
  void norm_silu_gradients_sample(const NormSilu&, const NormSiluGradients&, int64_t, float*, \
                                  float*, float*);                                            \
  double peak_loop(bool, int);                                                                \
  }
#define CDRL_KERNELS(variant)           \
  {#variant,                            \
   variant::langevin_step,              \
   variant::normal,                     \
   variant::resnet_group,               \
   variant::mlp_chain,                  \
   variant::unet_group,                 \
   variant::conv3x3_part,               \
   variant::conv3x3_weight_part,        \
   variant::conv3x3_pack,               \
   variant::conv3x3_unpack,             \
   variant::norm_silu_sample,           \
   variant::norm_silu_gradients_sample, \
   variant::peak_loop}
CDRL_DECLARE(portable)
#ifdef CDRL_X86
CDRL_DECLARE(avx2)
#endif
#ifdef CDRL_AVX512
CDRL_DECLARE(avx512)
CDRL_DECLARE(avx512bf16)
#endif
#undef CDRL_DECLARE

namespace {

std::vector<Kernels> available() {
  std::vector<Kernels> result;
#ifdef CDRL_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
#ifdef CDRL_AVX512
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    result.push_back(CDRL_KERNELS(avx512bf16));
  }
  if (avx512) result.push_back(CDRL_KERNELS(avx512));
#endif
  if (avx2) result.push_back(CDRL_KERNELS(avx2));
#endif
  result.push_back(CDRL_KERNELS(portable));
  return result;
}

// Null until use_variant is called.
const Kernels* chosen = nullptr;

}  // namespace

const std::vector<Kernels>& variants() {
  static const std::vector<Kernels> all = available();
  return all;
}

const Kernels& kernels() { return chosen != nullptr ? *chosen : variants().front(); }

void use_variant(const std::string& name) {
  std::string names;
  for (const Kernels& variant : variants()) {
    if (name == variant.name) {
      chosen = &variant;
      return;
    }
    names += std::string(names.empty() ? "" : ", ") + variant.name;
  }
  throw std::invalid_argument("use_cpu_variant: expected one of " + names + ", got '" + name + "'");
}

}  // namespace cdrl::cpu
