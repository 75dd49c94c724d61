#include "cpu/runtime/peak.h"

#include <algorithm>
#include <chrono>

#include "cpu/runtime/dispatch.h"

namespace cdrl::cpu {

double peak_flops(bool bfloat16, int threads) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 12, kRepeats = 60000;
  const auto peak_loop = kernels().peak_loop;
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    double operations = 0;
    const auto start = Clock::now();
#pragma omp parallel for reduction(+ : operations) num_threads(threads) if (threads > 1)
    for (int i = 0; i < threads; ++i) operations += peak_loop(bfloat16, kRepeats);
    best = std::max(best, operations / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

}  // namespace cdrl::cpu
