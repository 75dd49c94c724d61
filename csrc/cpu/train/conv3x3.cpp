// Shares the patches of a convolution out among threads and adds their contributions to the
// weight's gradient.
#include "cpu/train/conv3x3.h"

#include <algorithm>

#include "cpu/runtime/arena.h"
#include "cpu/runtime/dispatch.h"

namespace cdrl::cpu {

namespace {

Arena arena;

int64_t patches_of(const ConvShape& s) {
  const int side = side_of(s);
  return s.batch * patches_along(s.height, side) * patches_along(s.width, side);
}

// Floats of packed weights, for results or for the gradient of the inputs, whichever are more.
int64_t packed_of(const ConvShape& s) {
  const int side = side_of(s), ins = blocks_of(s.in), outs = blocks_of(s.out);
  return std::max(weights_count(side, outs, ins), weights_count(side, ins, outs));
}

// The shape of the convolution that computes the gradient of the inputs.
ConvShape transposed(const ConvShape& s) { return {s.batch, s.height, s.width, s.out, s.in}; }

// The buffers of one call in the arena, and the number of threads that run it.
struct Buffers {
  Arena::Lease lease;
  const float* zeros;
  float *weights, *sums, *workspaces;
  int threads;
  int64_t sums_size, workspace_size;  // floats per thread

  Buffers(const ConvShape& shape, int max_threads)
      : lease(arena, floats(shape, max_threads)),
        threads(threads_for(shape, max_threads)),
        sums_size(sums_of(shape)),
        workspace_size(workspace_of(shape)) {
    float* all = lease.floats();
    std::fill(all, all + channels(shape), 0.0f);
    zeros = all;
    weights = all + channels(shape);
    sums = weights + packed_of(shape);
    workspaces = sums + sums_size * threads;
  }

  ConvPart part(const ConvShape& shape, const float* x, int thread) const {
    const int64_t all = patches_of(shape);
    return {shape,
            all * thread / threads,
            all * (thread + 1) / threads,
            x,
            zeros,
            workspaces + thread * workspace_size};
  }

 private:
  static int channels(const ConvShape& shape) { return std::max(shape.in, shape.out); }
  // Floats of the gradients of the weight, transformed, and of the bias.
  static int64_t sums_of(const ConvShape& shape) { return weight_products(shape) + shape.out; }
  static int64_t workspace_of(const ConvShape& shape) {
    const int64_t blocks = blocks_of(shape.in) + blocks_of(shape.out) + kOuts;
    return products_of(side_of(shape)) * (kPatches * blocks + 3) * kBlock;
  }
  static int threads_for(const ConvShape& shape, int max_threads) {
#ifndef _OPENMP
    max_threads = 1;
#endif
    // Waking a thread for fewer patches takes longer than computing them.
    constexpr int64_t kMinPatches = 2 * kPatches;
    return int(std::clamp<int64_t>(patches_of(shape) / kMinPatches, 1, std::max(1, max_threads)));
  }
  static int64_t floats(const ConvShape& shape, int max_threads) {
    const int threads = threads_for(shape, max_threads);
    return channels(shape) + packed_of(shape) + (sums_of(shape) + workspace_of(shape)) * threads;
  }
};

// Fewer weights are packed on one thread, because waking others takes as long as packing some
// thousands.
constexpr int64_t kMinWeights = 16 * 128 * 128;

// Calls body(n) for every block of outputs.
template <class Body>
void each_block(int outs, const Buffers& buffers, const Body& body) {
  const bool parallel = buffers.threads > 1 && buffers.sums_size > kMinWeights;
#pragma omp parallel for num_threads(buffers.threads) if (parallel)
  for (int n = 0; n < outs / kBlock; ++n) body(n);
}

}  // namespace

void train_conv3x3(const ConvShape& shape, const float* x, const float* weight, const float* bias,
                   float* y, int threads) {
  const Buffers buffers(shape, threads);
  const Kernels& run = kernels();
  each_block(shape.out, buffers,
             [&](int n) { run.conv3x3_pack(shape, weight, false, n, buffers.weights); });
#pragma omp parallel for num_threads(buffers.threads) if (buffers.threads > 1)
  for (int i = 0; i < buffers.threads; ++i) {
    run.conv3x3_part(buffers.part(shape, x, i), buffers.weights, bias, y);
  }
}

void train_conv3x3_gradients(const ConvShape& shape, const float* x, const float* weight,
                             const ConvGradients& to, int threads) {
  const Buffers buffers(shape, threads);
  const Kernels& run = kernels();
  const ConvShape back = transposed(shape);
  if (to.x != nullptr) {
    each_block(back.out, buffers,
               [&](int n) { run.conv3x3_pack(back, weight, true, n, buffers.weights); });
  }
#pragma omp parallel for num_threads(buffers.threads) if (buffers.threads > 1)
  for (int i = 0; i < buffers.threads; ++i) {
    if (to.x != nullptr) {
      run.conv3x3_part(buffers.part(back, to.y, i), buffers.weights, nullptr, to.x);
    }
    float* sums = buffers.sums + i * buffers.sums_size;
    std::fill(sums, sums + buffers.sums_size, 0.0f);
    run.conv3x3_weight_part(buffers.part(shape, x, i), to.y, sums);
  }
  for (int i = 1; i < buffers.threads; ++i) {
    const float* more = buffers.sums + i * buffers.sums_size;
    for (int64_t k = 0; k < buffers.sums_size; ++k) buffers.sums[k] += more[k];
  }
  each_block(shape.out, buffers,
             [&](int n) { run.conv3x3_unpack(shape, buffers.sums, n, to.weight); });
  const float* bias = buffers.sums + buffers.sums_size - shape.out;
  std::copy(bias, bias + shape.out, to.bias);
}

}  // namespace cdrl::cpu
