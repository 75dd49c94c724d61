// Chooses the instruction set and cuts arrays into parts for threads.
#include "cpu/runtime/dispatch.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

namespace cdrl::cpu {

#define CDRL_DECLARE(variant)                                                      \
  namespace variant {                                                              \
  int64_t langevin_step(const StepArguments&, const Part&);                        \
  void normal(const NormalArguments&, const Part&);                                \
  int64_t mlp_chain(const MlpProgram&, const MlpCall&, int64_t, int, float*);      \
  void resnet_group(const ResNetNetwork&, const ResNetGroup&, ResNetBuffers&);     \
  void unet_group(const UNetNetwork&, const UNetGroup&, UNetBuffers&);             \
  void conv3x3_part(const ConvPart&, const float*, const float*, float*);          \
  void conv3x3_weight_part(const ConvPart&, const float*, float*);                 \
  void conv3x3_pack(const ConvShape&, const float*, bool, int, float*);            \
  void conv3x3_unpack(const ConvShape&, const float*, int, float*);                \
  void norm_silu_sample(const NormSilu&, int64_t, float*, float*);                 \
  void norm_silu_gradients_sample(const NormSilu&, const NormSiluGradients&,       \
                                  int64_t, float*, float*, float*);                \
  double products(bool, int);                                                      \
  }
#define CDRL_KERNELS(variant)                                                          \
  {#variant,                                                                           \
   variant::langevin_step,                                                             \
   variant::normal,                                                                    \
   variant::resnet_group,                                                              \
   variant::mlp_chain,                                                                 \
   variant::unet_group,                                                                \
   variant::conv3x3_part,                                                              \
   variant::conv3x3_weight_part,                                                       \
   variant::conv3x3_pack,                                                              \
   variant::conv3x3_unpack,                                                            \
   variant::norm_silu_sample,                                                          \
   variant::norm_silu_gradients_sample,                                                \
   variant::products}
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
  std::vector<Kernels> found;
#ifdef CDRL_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
#ifdef CDRL_AVX512
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    found.push_back(CDRL_KERNELS(avx512bf16));
  }
  if (avx512) found.push_back(CDRL_KERNELS(avx512));
#endif
  if (avx2) found.push_back(CDRL_KERNELS(avx2));
#endif
  found.push_back(CDRL_KERNELS(portable));
  return found;
}

const Kernels* chosen = nullptr;

// About 30 µs of one thread's work: waking another for less does not pay.
constexpr int64_t kBlocksAThread = 8192;
// 2,048 blocks are 32 KB of each array: small enough to share the work evenly.
constexpr int64_t kBlocksAPart = 2048;

// Equal parts of an array, cut within samples where those are large and between them where not.
struct Cut {
  int64_t batch, blocks, parts_a_sample, samples_a_part, count;

  Cut(int64_t batch, int64_t elements) : batch(batch), blocks(fours_of(elements)) {
    parts_a_sample = std::max<int64_t>(1, blocks / kBlocksAPart);
    samples_a_part = std::max<int64_t>(1, kBlocksAPart / std::max<int64_t>(1, blocks));
    count = parts_a_sample > 1 ? batch * parts_a_sample
                               : (batch + samples_a_part - 1) / samples_a_part;
  }

  Part operator[](int64_t i) const {
    if (parts_a_sample > 1) {
      const int64_t sample = i / parts_a_sample, part = i % parts_a_sample;
      // Parts of whole groups, whatever the instruction set: at most 8 blocks.
      const int64_t size = (blocks / parts_a_sample + 7) / 8 * 8;
      const bool last = part == parts_a_sample - 1;
      const int64_t begin = std::min(part * size, blocks);
      return {sample, sample + 1, begin, last ? blocks : std::min(begin + size, blocks)};
    }
    const int64_t begin = i * samples_a_part;
    return {begin, std::min(begin + samples_a_part, batch), 0, blocks};
  }

  int threads(int wanted) const {
    const int64_t useful = std::min(count, batch * blocks / kBlocksAThread);
    return int(std::clamp<int64_t>(useful, 1, std::max(1, wanted)));
  }
};

Stream resolved(const Stream& stream) {
  if (stream.state == nullptr) return stream;
  const int64_t* s = stream.state;
  return {uint64_t(s[0]), uint64_t(s[2]), stream.state, uint32_t(s[1])};
}

}  // namespace

const std::vector<Kernels>& variants() {
  static const std::vector<Kernels> found = available();
  return found;
}

const Kernels& kernels() { return chosen != nullptr ? *chosen : variants().front(); }

void use_variant(const std::string& name) {
  for (const Kernels& variant : variants()) {
    if (name == variant.name) {
      chosen = &variant;
      return;
    }
  }
  throw std::invalid_argument("this machine has no variant '" + name + "' of the CPU kernels");
}

void langevin_step(StepArguments a, int threads) {
  a.stream = resolved(a.stream);
  const Cut cut(a.batch, a.elements);
  const auto step = kernels().langevin_step;
  int64_t bad = kNone;
#pragma omp parallel for schedule(dynamic) reduction(min : bad) num_threads(cut.threads(threads)) \
    if (cut.threads(threads) > 1)
  for (int64_t i = 0; i < cut.count; ++i) bad = std::min(bad, step(a, cut[i]));
  if (a.first_bad != nullptr && bad != kNone) {
    *a.first_bad = std::min(*a.first_bad, (int64_t(a.stream.draw) << 31) + bad);
  }
  if (a.stream.state != nullptr) a.stream.state[1] += 1;
}

void normal(const NormalArguments& a, int threads) {
  const Cut cut(a.batch, a.elements);
  const auto fill = kernels().normal;
#pragma omp parallel for schedule(dynamic) num_threads(cut.threads(threads)) \
    if (cut.threads(threads) > 1)
  for (int64_t i = 0; i < cut.count; ++i) fill(a, cut[i]);
}

double peak_flops(bool bfloat16, int threads) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 12, kRepeats = 60000;
  const auto products = kernels().products;
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    double done = 0;
    const auto start = Clock::now();
#pragma omp parallel for reduction(+ : done) num_threads(threads) if (threads > 1)
    for (int i = 0; i < threads; ++i) done += products(bfloat16, kRepeats);
    best = std::max(best, done / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

}  // namespace cdrl::cpu
