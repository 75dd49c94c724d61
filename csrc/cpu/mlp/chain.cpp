// Cuts a batch into chunks and shares these out among threads.
#include "cpu/mlp/chain.h"

#include <algorithm>

#include "cpu/noise/noise.h"
#include "cpu/runtime/dispatch.h"
#include "cpu/runtime/memory.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace cdrl::cpu {

namespace {

// Bytes of a chunk's workspace: with the weights that pass through, most of an L2 cache.
constexpr int64_t kWorkspaceBytes = 512 << 10;
constexpr int64_t kMinSamples = 28, kMaxSamples = 128;  // per chunk
// Multiplications that justify waking a thread: about 30 µs.
constexpr int64_t kCostPerThread = 1 << 20;

// Returns a workspace of the calling thread, which is kept between calls.
float* thread_workspace(int64_t floats) {
  thread_local Memory memory;
  thread_local int64_t size = 0;
  if (floats > size) {
    size = 0;
    memory = Memory();
    memory = Memory(size_t(floats) * sizeof(float));
    size = floats;
  }
  return memory.at<float>(0);
}

}  // namespace

int64_t mlp_chain(const MlpProgram& program, const MlpCall& call, int threads) {
  if (call.batch == 0) return kNone;
  const int64_t cost = program.cost * call.batch * std::max<int64_t>(1, call.steps);
  threads = int(std::clamp<int64_t>(cost / kCostPerThread, 1, std::max(1, threads)));
  const int64_t limit = std::clamp<int64_t>(
      kWorkspaceBytes / (int64_t(sizeof(float)) * program.workspace), kMinSamples, kMaxSamples);
  // Every thread gets the same number of chunks, of nearly equal size.
  int64_t chunks = (call.batch + limit - 1) / limit;
  chunks = std::min(call.batch, (chunks + threads - 1) / threads * threads);
  const auto run = kernels().mlp_chain;
  // Allocated here, because an exception must not leave a parallel region.
  const int64_t size = program.workspace * ((call.batch + chunks - 1) / chunks);
  float* workspaces = thread_workspace(size * threads);
  int64_t bad = kNone;
#pragma omp parallel for schedule(dynamic) reduction(min : bad) \
    num_threads(threads) if (threads > 1)
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t begin = call.batch * i / chunks, end = call.batch * (i + 1) / chunks;
#ifdef _OPENMP
    float* workspace = workspaces + size * omp_get_thread_num();
#else
    float* workspace = workspaces;
#endif
    bad = std::min(bad, run(program, call, begin, int(end - begin), workspace));
  }
  return bad;
}

}  // namespace cdrl::cpu
