// The Langevin update in one pass, 16 bytes per element: the noise is computed in registers.
//
// One thread per block of four elements. Its three 16-byte loads are issued before the noise is
// computed, which hides their latency.
#include <cuda_fp16.h>

#include "common/philox.h"
#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace cdrl::cuda {
namespace {

template <GradType type>
struct Grad;

template <>
struct Grad<GradType::kFloat32> {
  using Element = float;
  using Vector = float4;
  static __device__ float one(float g) { return g; }
  static __device__ void four(const Vector& v, float g[4]) {
    g[0] = v.x, g[1] = v.y, g[2] = v.z, g[3] = v.w;
  }
};

template <GradType type>
struct HalfGrad {
  using Element = uint16_t;
  using Vector = ushort4;
  static __device__ float one(uint16_t g) {
    if constexpr (type == GradType::kBFloat16) return from_bits(uint32_t(g) << 16);
    return __half2float(__ushort_as_half(g));
  }
  static __device__ void four(const Vector& v, float g[4]) {
    g[0] = one(v.x), g[1] = one(v.y), g[2] = one(v.z), g[3] = one(v.w);
  }
};

template <>
struct Grad<GradType::kBFloat16> : HalfGrad<GradType::kBFloat16> {};
template <>
struct Grad<GradType::kFloat16> : HalfGrad<GradType::kFloat16> {};

struct Coefficients {
  float drift, pull, noise_std, rescale;
};

__device__ __forceinline__ Coefficients coefficients(const StepArguments& a, int64_t sample) {
  if (a.table == nullptr) return {a.drift, a.pull, a.noise_std, a.rescale};
  const float* t = a.table + sample;
  return {t[0], t[a.batch], t[2 * a.batch], t[3 * a.batch]};
}

template <bool has_anchor>
__device__ __forceinline__ float update(float x, float g, float anchor, float z,
                                        const Coefficients& c) {
  float y = fmaf(c.drift, g, x);
  if (has_anchor) y = fmaf(-c.pull, x - anchor, y);
  return fmaf(c.noise_std, z, y) * c.rescale;
}

// `vectorized`: `elements` is a multiple of 4 and all addresses allow 16-byte access.
template <GradType type, bool has_anchor, bool vectorized>
__global__ void __launch_bounds__(kThreads)
    cdrl_langevin_step(const StepArguments a, unsigned chunks) {
  using G = Grad<type>;
  const auto* grad = static_cast<const typename G::Element*>(a.grad);
  const Stream stream = resolved(a.stream);
  const Place p = place(a.elements, chunks);
  const int64_t at = p.sample * a.elements + 4 * p.block;
  bool fine = true;
  if (p.sample < a.batch && 4 * p.block < a.elements) {
    const Coefficients c = coefficients(a, p.sample);
    const uint64_t index = stream.first_sample + uint64_t(p.sample);
    if constexpr (vectorized) {
      // Not through the read-only cache, because in place x and out are one array.
      const float4 x = *reinterpret_cast<const float4*>(a.x + at);
      const typename G::Vector packed = *reinterpret_cast<const typename G::Vector*>(grad + at);
      float4 near = {};
      if (has_anchor) near = *reinterpret_cast<const float4*>(a.anchor + at);
      float g[4];
      G::four(packed, g);
      const Four z = normals(stream.seed, stream.draw, index, uint32_t(p.block));
      const float4 y = {update<has_anchor>(x.x, g[0], near.x, z.n[0], c),
                        update<has_anchor>(x.y, g[1], near.y, z.n[1], c),
                        update<has_anchor>(x.z, g[2], near.z, z.n[2], c),
                        update<has_anchor>(x.w, g[3], near.w, z.n[3], c)};
      *reinterpret_cast<float4*>(a.out + at) = y;
      // y - y is 0 for a finite y and NaN otherwise, so the sum is 0 only if all four are finite.
      fine = (y.x - y.x) + (y.y - y.y) + (y.z - y.z) + (y.w - y.w) == 0.0f;
    } else {
      const Four z = normals(stream.seed, stream.draw, index, uint32_t(p.block));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (4 * p.block + i >= a.elements) break;
        const float near = has_anchor ? a.anchor[at + i] : 0.0f;
        const float y = update<has_anchor>(a.x[at + i], G::one(grad[at + i]), near, z.n[i], c);
        a.out[at + i] = y;
        fine = fine && y - y == 0.0f;
      }
    }
  }
  if (!fine && a.first_bad != nullptr) {
    atomicMin(reinterpret_cast<long long*>(a.first_bad),
              (static_cast<long long>(stream.draw) << 31) + p.sample);
  }
  advance(stream.state);
}

bool aligned(const void* address, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

template <GradType type, bool has_anchor>
void launch(const StepArguments& a, const Grid& grid, cudaStream_t stream) {
  const bool vectorized = a.elements % 4 == 0 && aligned(a.x, 16) && aligned(a.out, 16) &&
                          aligned(a.anchor, 16) &&
                          aligned(a.grad, 4 * sizeof(typename Grad<type>::Element));
  if (vectorized) {
    cdrl_langevin_step<type, has_anchor, true><<<grid.count, kThreads, 0, stream>>>(a, grid.chunks);
  } else {
    cdrl_langevin_step<type, has_anchor, false>
        <<<grid.count, kThreads, 0, stream>>>(a, grid.chunks);
  }
}

template <GradType type>
void launch(const StepArguments& a, const Grid& grid, cudaStream_t stream) {
  if (a.anchor != nullptr)
    launch<type, true>(a, grid, stream);
  else
    launch<type, false>(a, grid, stream);
}

}  // namespace

void langevin_step(const StepArguments& a, int device, uintptr_t stream) {
  const Device current(device);
  const Grid grid(a.batch, a.elements);
  const auto queue = reinterpret_cast<cudaStream_t>(stream);
  switch (a.grad_type) {
    case GradType::kFloat32:
      launch<GradType::kFloat32>(a, grid, queue);
      break;
    case GradType::kBFloat16:
      launch<GradType::kBFloat16>(a, grid, queue);
      break;
    case GradType::kFloat16:
      launch<GradType::kFloat16>(a, grid, queue);
      break;
  }
  check(cudaGetLastError(), "langevin_step");
}

}  // namespace cdrl::cuda
