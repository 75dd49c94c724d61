// Shares samples out among threads, and adds their shares of the weights' gradients.
#include "cpu/train/norm_silu.h"

#include <algorithm>

#include "cpu/runtime/arena.h"
#include "cpu/runtime/dispatch.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace cdrl::cpu {

namespace {

Arena arena;

int thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Threads that are worth their start: 4,096 numbers are some microseconds' work.
int threads_for(const NormSilu& norm, int wanted) {
  const int64_t useful = norm.batch * norm.positions * norm.channels / 4096;
  return int(std::clamp<int64_t>(std::min(useful, norm.batch), 1, std::max(1, wanted)));
}

}  // namespace

void train_norm_silu(const NormSilu& norm, float* y, int threads) {
  threads = threads_for(norm, threads);
  const int64_t each = norm_silu_memory(norm);
  const Arena::Lease memory(arena, each * threads);
  const auto run = kernels().norm_silu_sample;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t s = 0; s < norm.batch; ++s) run(norm, s, y, memory.numbers() + each * thread());
}

void train_norm_silu_gradients(const NormSilu& norm, const NormSiluGradients& to, int threads) {
  threads = threads_for(norm, threads);
  const int64_t each = norm_silu_memory(norm), channels = norm.channels;
  const Arena::Lease memory(arena, each * threads + 2 * norm.batch * channels);
  float *weights = memory.numbers() + each * threads, *biases = weights + norm.batch * channels;
  const auto run = kernels().norm_silu_gradients_sample;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t s = 0; s < norm.batch; ++s) {
    run(norm, to, s, weights, biases, memory.numbers() + each * thread());
  }
  std::fill(to.weight, to.weight + channels, 0.0f);
  std::fill(to.bias, to.bias + channels, 0.0f);
  for (int64_t s = 0; s < norm.batch; ++s) {
    for (int64_t c = 0; c < channels; ++c) {
      to.weight[c] += weights[s * channels + c];
      to.bias[c] += biases[s * channels + c];
    }
  }
}

}  // namespace cdrl::cpu
