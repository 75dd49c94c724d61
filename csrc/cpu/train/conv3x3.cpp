// Shares convolutions out among threads, and adds what they found of the weight's gradient.
#include "cpu/train/conv3x3.h"

#include <algorithm>

#include "cpu/runtime/arena.h"
#include "cpu/runtime/dispatch.h"

namespace cdrl::cpu {

namespace {

Arena arena;

// Where things are in the arena, and how many threads work.
struct Places {
  Arena::Lease lease;
  const float* zeros;
  float *weights, *sums, *parts;
  int threads;
  int64_t sum, part;  // numbers of one thread's

  Places(const ConvShape& shape, int wanted)
      : lease(arena, needed(shape, wanted)), threads(threads_for(shape, wanted)),
        sum(sums_of(shape)), part(part_of(shape)) {
    float* all = lease.numbers();
    std::fill(all, all + channels(shape), 0.0f);
    zeros = all;
    weights = all + channels(shape);
    sums = weights + shape.packed();
    parts = sums + sum * threads;
  }

  ConvPart of(const ConvShape& shape, const float* x, int thread) const {
    const int64_t all = shape.patches();
    return {shape, all * thread / threads, all * (thread + 1) / threads, x, zeros,
            parts + thread * part};
  }

 private:
  static int channels(const ConvShape& shape) { return std::max(shape.in, shape.out); }
  // Those of the weight's gradient, transformed, and of the bias's.
  static int64_t sums_of(const ConvShape& shape) {
    return shape.products() + shape.out;
  }
  static int64_t part_of(const ConvShape& shape) {
    const int64_t blocks = blocks_of(shape.in) + blocks_of(shape.out) + kOuts;
    return products_of(shape.side()) * (kPatches * blocks + 3) * kBlock;
  }
  static int threads_for(const ConvShape& shape, int wanted) {
#ifndef _OPENMP
    wanted = 1;
#endif
    // A thread for fewer patches than this would wait longer for its start than it worked.
    constexpr int64_t kLeast = 2 * kPatches;
    return int(std::clamp<int64_t>(shape.patches() / kLeast, 1, std::max(1, wanted)));
  }
  static int64_t needed(const ConvShape& shape, int wanted) {
    const int threads = threads_for(shape, wanted);
    return channels(shape) + shape.packed() +
           (sums_of(shape) + part_of(shape)) * threads;
  }
};

constexpr int64_t kWorthThreads = 16 * 128 * 128;

// Calls run.conv3x3_pack or conv3x3_unpack for every block of outputs: on threads only where there are
// many weights, for waking them takes as long as some thousands.
template <class Body>
void each_block(int outs, const Places& places, const Body& body) {
  const bool worth = places.threads > 1 && places.sum > kWorthThreads;
#pragma omp parallel for num_threads(places.threads) if (worth)
  for (int n = 0; n < outs / kBlock; ++n) body(n);
}

}  // namespace

void train_conv3x3(const ConvShape& shape, const float* x, const float* weight, const float* bias,
                   float* y, int threads) {
  const Places places(shape, threads);
  const Kernels& run = kernels();
  each_block(shape.out, places,
             [&](int n) { run.conv3x3_pack(shape, weight, false, n, places.weights); });
#pragma omp parallel for num_threads(places.threads) if (places.threads > 1)
  for (int i = 0; i < places.threads; ++i) {
    run.conv3x3_part(places.of(shape, x, i), places.weights, bias, y);
  }
}

void train_conv3x3_gradients(const ConvShape& shape, const float* x, const float* weight,
                             const ConvGradients& to, int threads) {
  const Places places(shape, threads);
  const Kernels& run = kernels();
  const ConvShape back = shape.transposed();
  if (to.x != nullptr) {
    each_block(back.out, places,
               [&](int n) { run.conv3x3_pack(back, weight, true, n, places.weights); });
  }
#pragma omp parallel for num_threads(places.threads) if (places.threads > 1)
  for (int i = 0; i < places.threads; ++i) {
    if (to.x != nullptr) {
      run.conv3x3_part(places.of(back, to.y, i), places.weights, nullptr, to.x);
    }
    float* sums = places.sums + i * places.sum;
    std::fill(sums, sums + places.sum, 0.0f);
    run.conv3x3_weight_part(places.of(shape, x, i), to.y, sums);
  }
  for (int i = 1; i < places.threads; ++i) {
    const float* more = places.sums + i * places.sum;
    for (int64_t k = 0; k < places.sum; ++k) places.sums[k] += more[k];
  }
  each_block(shape.out, places,
             [&](int n) { run.conv3x3_unpack(shape, places.sums, n, to.weight); });
  const float* bias = places.sums + places.sum - shape.out;
  std::copy(bias, bias + shape.out, to.bias);
}

}  // namespace cdrl::cpu
