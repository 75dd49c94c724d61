// Writes the noise stream to memory, one thread per block of four elements.
#include "common/philox.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace cdrl::cuda {
namespace {

// `vectorized`: `elements` is a multiple of 4 and the address allows 16-byte access.
template <bool vectorized>
__global__ void __launch_bounds__(kThreads) cdrl_normal(const NormalArguments a, unsigned chunks) {
  const Place p = place(a.elements, chunks);
  if (p.sample >= a.batch || 4 * p.block >= a.elements) return;
  const uint64_t index = a.stream.first_sample + uint64_t(p.sample);
  const Four z = normals(a.stream.seed, a.stream.draw, index, uint32_t(p.block));
  float* out = a.out + p.sample * a.elements + 4 * p.block;
  if constexpr (vectorized) {
    *reinterpret_cast<float4*>(out) = {z.n[0], z.n[1], z.n[2], z.n[3]};
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (4 * p.block + i < a.elements) out[i] = z.n[i];
    }
  }
}

}  // namespace

void normal(const NormalArguments& a, int device, uintptr_t stream) {
  const Device current(device);
  const Grid grid(a.batch, a.elements);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  if (a.elements % 4 == 0 && reinterpret_cast<uintptr_t>(a.out) % 16 == 0) {
    cdrl_normal<true><<<grid.count, kThreads, 0, queue>>>(a, grid.chunks);
  } else {
    cdrl_normal<false><<<grid.count, kThreads, 0, queue>>>(a, grid.chunks);
  }
  check(cudaGetLastError(), "normal");
}

int runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace cdrl::cuda
