// Shares samples out among threads and adds their contributions to the gradients of weight and
// bias.
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

int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Limits the threads to those that pay for being woken: 4,096 values are a few microseconds of
// work.
int threads_for(const NormSilu& norm, int limit) {
  const int64_t useful = norm.batch * norm.positions * norm.channels / 4096;
  return int(std::clamp<int64_t>(std::min(useful, norm.batch), 1, std::max(1, limit)));
}

}  // namespace

void train_norm_silu(const NormSilu& norm, float* y, int threads) {
  threads = threads_for(norm, threads);
  const int64_t size = norm_silu_workspace(norm);
  const Arena::Lease memory(arena, size * threads);
  const auto run = kernels().norm_silu_sample;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t s = 0; s < norm.batch; ++s) {
    run(norm, s, y, memory.floats() + size * thread_number());
  }
}

void train_norm_silu_gradients(const NormSilu& norm, const NormSiluGradients& to, int threads) {
  threads = threads_for(norm, threads);
  const int64_t size = norm_silu_workspace(norm), channels = norm.channels;
  const Arena::Lease memory(arena, size * threads + 2 * norm.batch * channels);
  float *weights = memory.floats() + size * threads, *biases = weights + norm.batch * channels;
  const auto run = kernels().norm_silu_gradients_sample;
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t s = 0; s < norm.batch; ++s) {
    run(norm, to, s, weights, biases, memory.floats() + size * thread_number());
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
