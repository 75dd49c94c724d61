// Grid and thread layout of the kernels, error checks and the device guard of a launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/arguments.h"

namespace cdrl::cuda {

constexpr int kThreads = 256;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

// Makes a device current until destroyed.
class Device {
 public:
  explicit Device(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_)
      check(cudaSetDevice(device), "cudaSetDevice");
    else
      before_ = -1;
  }
  ~Device() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

 private:
  int before_;
};

// The grid of a launch: one thread per block of four elements. Large samples are cut into chunks of
// kThreads blocks, so that a thread block stays within a sample; small samples share thread blocks.
struct Grid {
  unsigned count;
  unsigned chunks;  // thread blocks per sample, or 0 for small samples

  Grid(int64_t batch, int64_t elements) {
    const int64_t blocks = fours_of(elements);
    const bool small = blocks < kThreads / 2;
    const int64_t per_sample = (blocks + kThreads - 1) / kThreads;
    const int64_t total = small ? (batch * blocks + kThreads - 1) / kThreads : batch * per_sample;
    if (total > INT32_MAX) {
      throw std::runtime_error("the array needs " + std::to_string(total) +
                               " thread blocks, one launch allows 2147483647: split the batch");
    }
    count = unsigned(total);
    chunks = small ? 0 : unsigned(per_sample);
  }
};

struct Place {
  int64_t sample, block;
};

// Returns the block of four elements that this thread computes; it may be beyond the end.
__device__ __forceinline__ Place place(int64_t elements, unsigned chunks) {
  if (chunks != 0) {
    const unsigned sample = blockIdx.x / chunks;
    const unsigned chunk = blockIdx.x - sample * chunks;
    return {int64_t(sample), int64_t(chunk) * kThreads + threadIdx.x};
  }
  const int64_t blocks = (elements + 3) / 4;
  const int64_t index = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t sample = index / blocks;
  return {sample, index - sample * blocks};
}

// Reads a stream's position from its state in device memory, where it has one.
__device__ __forceinline__ Stream resolved(const Stream& stream) {
  if (stream.state == nullptr) return stream;
  return {uint64_t(stream.state[0]), uint64_t(stream.state[2]), stream.state,
          uint32_t(stream.state[1])};
}

// Advances the draw in `state`. The last thread block to arrive does it, because by then all blocks
// have read it. Every thread must call this.
__device__ __forceinline__ void advance(int64_t* state) {
  if (state == nullptr) return;
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  auto* arrivals = reinterpret_cast<unsigned long long*>(state + 3);
  if (atomicAdd(arrivals, 1ull) != gridDim.x - 1) return;
  *arrivals = 0;
  state[1] += 1;
}

}  // namespace cdrl::cuda
