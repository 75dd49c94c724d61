// How the kernels lay out work, and what a launch needs around it.
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

// Makes a device current for the length of a launch.
class Device {
 public:
  explicit Device(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device != before_) check(cudaSetDevice(device), "cudaSetDevice");
    else before_ = -1;
  }
  ~Device() {
    if (before_ >= 0) cudaSetDevice(before_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

 private:
  int before_;
};

// One thread takes one block of four elements. Samples of many blocks are cut into chunks of
// kThreads, so that a thread block stays within a sample; small ones share thread blocks.
struct Grid {
  unsigned count;
  unsigned chunks;  // thread blocks a sample, or 0 for small samples

  Grid(int64_t batch, int64_t elements) {
    const int64_t blocks = fours_of(elements);
    const bool small = blocks < kThreads / 2;
    const int64_t per_sample = (blocks + kThreads - 1) / kThreads;
    const int64_t total =
        small ? (batch * blocks + kThreads - 1) / kThreads : batch * per_sample;
    if (total > INT32_MAX) throw std::runtime_error("array too large for one launch");
    count = unsigned(total);
    chunks = small ? 0 : unsigned(per_sample);
  }
};

struct Place {
  int64_t sample, block;
};

// Which block of four elements this thread takes; it may lie beyond the end.
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

// The stream's position, from device memory where it is kept there.
__device__ __forceinline__ Stream resolved(const Stream& stream) {
  if (stream.state == nullptr) return stream;
  return {uint64_t(stream.state[0]), uint64_t(stream.state[2]), stream.state,
          uint32_t(stream.state[1])};
}

// The last thread block to arrive moves the draw on: by then all have read it. Every thread calls it.
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
