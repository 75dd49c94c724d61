// The compiled module cdrl_fast._C. Functions take addresses, sizes and a CUDA stream and write to
// memory of the caller, so the module doesn't depend on torch. cdrl_fast/ops checks the arguments.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <tuple>

#include "common/arguments.h"
#include "cpu/mlp/energy.h"
#include "cpu/noise/noise.h"
#include "cpu/resnet/gradient.h"
#include "cpu/runtime/dispatch.h"
#include "cpu/runtime/peak.h"
#include "cpu/train/conv3x3.h"
#include "cpu/train/norm_silu.h"
#include "cpu/unet/forward.h"
#ifdef CDRL_WITH_CUDA
#include "cuda/kernels.h"
#endif

namespace py = pybind11;

namespace {

template <class T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

cdrl::StepArguments step_arguments(uintptr_t out, uintptr_t x, uintptr_t grad, int grad_type,
                                   uintptr_t anchor, int64_t batch, int64_t elements,
                                   uintptr_t table, float drift, float pull, float noise_std,
                                   float rescale, int64_t seed, int64_t draw, int64_t first_sample,
                                   uintptr_t rng, uintptr_t first_bad) {
  return {address<float>(out),
          address<const float>(x),
          address<const void>(grad),
          address<const float>(anchor),
          address<const float>(table),
          address<int64_t>(first_bad),
          batch,
          elements,
          {uint64_t(seed), uint64_t(first_sample), address<int64_t>(rng), uint32_t(draw)},
          drift,
          pull,
          noise_std,
          rescale,
          static_cast<cdrl::GradType>(grad_type)};
}

cdrl::NormalArguments normal_arguments(uintptr_t out, int64_t batch, int64_t elements, int64_t seed,
                                       int64_t draw, int64_t first_sample) {
  return {address<float>(out),
          batch,
          elements,
          {uint64_t(seed), uint64_t(first_sample), nullptr, uint32_t(draw)}};
}

cdrl::cpu::ResNetArguments resnet_arguments(uintptr_t y, uintptr_t rows, bool rows_per_sample,
                                            uintptr_t head, bool head_per_sample,
                                            uintptr_t energies, uintptr_t gradient, uintptr_t signs,
                                            int64_t batch) {
  return {address<const float>(y),
          address<const float>(rows),
          rows_per_sample,
          address<const float>(head),
          head_per_sample,
          address<float>(energies),
          address<float>(gradient),
          address<uint8_t>(signs),
          batch};
}

template <class T>
std::vector<T*> addresses(const std::vector<uintptr_t>& values) {
  std::vector<T*> result;
  for (const uintptr_t value : values) result.push_back(address<T>(value));
  return result;
}

// (source, target, activation, leak, linear, row) per step.
using MlpStepTuple = std::tuple<int, int, int, float, bool, int64_t>;

void add_mlp_energy(py::module_& m) {
  using cdrl::cpu::MlpCall;
  using cdrl::cpu::MlpEnergy;
  py::class_<MlpEnergy>(m, "MlpEnergy")
      .def(py::init([](std::vector<int> widths, const std::vector<MlpStepTuple>& steps,
                       int activation, float leak, bool half, const std::vector<uintptr_t>& weights,
                       const std::vector<uintptr_t>& biases, uintptr_t head, float constant) {
        std::vector<cdrl::cpu::MlpShape> shapes;
        for (const auto& [source, target, kind, slope, linear, row] : steps) {
          shapes.push_back(
              {source, target, static_cast<cdrl::Activation>(kind), slope, linear, row});
        }
        const cdrl::cpu::MlpWeights tensors{addresses<const float>(weights),
                                            addresses<const float>(biases),
                                            address<const float>(head), constant};
        return std::make_unique<MlpEnergy>(std::move(widths), shapes,
                                           static_cast<cdrl::Activation>(activation), leak, half,
                                           tensors);
      }))
      .def("chain",
           [](const MlpEnergy& energy, uintptr_t y, uintptr_t anchor, int64_t batch, int64_t steps,
              uintptr_t table, float drift, float pull, float noise_std, float rescale,
              uintptr_t rows, int64_t rows_stride, int64_t seed, int64_t draw, int64_t first_sample,
              uintptr_t first_bad, int threads) {
             MlpCall call{};
             call.y = address<float>(y), call.anchor = address<const float>(anchor);
             call.batch = batch, call.steps = steps, call.table = address<const float>(table);
             call.drift = drift, call.pull = pull;
             call.noise_std = noise_std, call.rescale = rescale;
             call.rows = address<const float>(rows), call.rows_stride = rows_stride;
             call.seed = uint64_t(seed), call.draw = uint32_t(draw);
             call.first_sample = uint64_t(first_sample);
             const py::gil_scoped_release release;
             const int64_t bad = cdrl::cpu::mlp_chain(energy.program(), call, threads);
             auto* minimum = address<int64_t>(first_bad);
             if (minimum != nullptr && bad < *minimum) *minimum = bad;
           })
      .def("gradient", [](const MlpEnergy& energy, uintptr_t y, int64_t batch, uintptr_t rows,
                          int64_t rows_stride, uintptr_t value, uintptr_t gradient, int threads) {
        MlpCall call{};
        call.y = address<float>(y), call.batch = batch;
        call.rows = address<const float>(rows), call.rows_stride = rows_stride;
        call.value = address<float>(value), call.gradient = address<float>(gradient);
        const py::gil_scoped_release release;
        cdrl::cpu::mlp_chain(energy.program(), call, threads);
      });
}

void add_resnet_gradient(py::module_& m) {
  using cdrl::cpu::ResNetGradient;
  py::class_<ResNetGradient>(m, "ResNetGradient")
      .def(py::init<int, int, const std::vector<int>&, int, int, int, bool>(),
           py::arg("image_channels"), py::arg("width"), py::arg("multipliers"), py::arg("blocks"),
           py::arg("height"), py::arg("width_pixels"), py::arg("bfloat16"))
      .def(
          "load",
          [](ResNetGradient& self, const std::vector<uintptr_t>& values) {
            const auto tensors = addresses<const float>(values);
            const py::gil_scoped_release release;
            self.load(tensors);
          },
          py::arg("addresses"))
      .def(
          "run",
          [](ResNetGradient& self, uintptr_t y, uintptr_t rows, bool rows_per_sample,
             uintptr_t head, bool head_per_sample, uintptr_t energies, uintptr_t gradient,
             uintptr_t signs, int64_t batch, int threads) {
            const auto arguments = resnet_arguments(y, rows, rows_per_sample, head, head_per_sample,
                                                    energies, gradient, signs, batch);
            const py::gil_scoped_release release;
            self.run(arguments, threads);
          },
          py::arg("y"), py::arg("rows"), py::arg("rows_per_sample"), py::arg("head"),
          py::arg("head_per_sample"), py::arg("energies"), py::arg("gradient"), py::arg("signs"),
          py::arg("batch"), py::arg("threads"))
      .def("workspace_bytes", &ResNetGradient::workspace_bytes, py::arg("batch"),
           py::arg("threads"));
}

std::vector<std::string> variant_names() {
  std::vector<std::string> names;
  for (const auto& variant : cdrl::cpu::variants()) names.emplace_back(variant.name);
  return names;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Kernels on plain addresses, called by cdrl_fast/ops.";
  m.attr("interface") = CDRL_INTERFACE;

  m.def("cpu_variants", variant_names, "Instruction sets that this machine can run, best first.");
  m.def("cpu_variant", [] { return cdrl::cpu::kernels().name; });
  m.def("use_cpu_variant", &cdrl::cpu::use_variant);
  m.def("peak_flops", &cdrl::cpu::peak_flops, py::call_guard<py::gil_scoped_release>());
  // Kernels copy no argument and use no Python object, so every call releases the GIL.
  m.def("langevin_step_cpu",
        [](uintptr_t out, uintptr_t x, uintptr_t grad, int grad_type, uintptr_t anchor,
           int64_t batch, int64_t elements, uintptr_t table, float drift, float pull,
           float noise_std, float rescale, int64_t seed, int64_t draw, int64_t first_sample,
           uintptr_t rng, uintptr_t first_bad, int threads) {
          const auto arguments =
              step_arguments(out, x, grad, grad_type, anchor, batch, elements, table, drift, pull,
                             noise_std, rescale, seed, draw, first_sample, rng, first_bad);
          const py::gil_scoped_release release;
          cdrl::cpu::langevin_step(arguments, threads);
        });
  m.def("normal_cpu", [](uintptr_t out, int64_t batch, int64_t elements, int64_t seed, int64_t draw,
                         int64_t first_sample, int threads) {
    const auto arguments = normal_arguments(out, batch, elements, seed, draw, first_sample);
    const py::gil_scoped_release release;
    cdrl::cpu::normal(arguments, threads);
  });

  m.def("train_conv3x3", [](int64_t batch, int height, int width, int in, int out, uintptr_t x,
                            uintptr_t weight, uintptr_t bias, uintptr_t y, int threads) {
    const py::gil_scoped_release release;
    cdrl::cpu::train_conv3x3({batch, height, width, in, out}, address<const float>(x),
                             address<const float>(weight), address<const float>(bias),
                             address<float>(y), threads);
  });
  m.def("train_conv3x3_gradients", [](int64_t batch, int height, int width, int in, int out,
                                      uintptr_t x, uintptr_t weight, uintptr_t y_grad,
                                      uintptr_t x_grad, uintptr_t weight_grad, uintptr_t bias_grad,
                                      int threads) {
    const py::gil_scoped_release release;
    cdrl::cpu::train_conv3x3_gradients({batch, height, width, in, out}, address<const float>(x),
                                       address<const float>(weight),
                                       {address<const float>(y_grad), address<float>(x_grad),
                                        address<float>(weight_grad), address<float>(bias_grad)},
                                       threads);
  });
  m.def("train_norm_silu", [](int64_t batch, int64_t positions, int channels, int groups,
                              bool activate, uintptr_t x, uintptr_t weight, uintptr_t bias,
                              uintptr_t row, uintptr_t moments, uintptr_t y, int threads) {
    const py::gil_scoped_release release;
    cdrl::cpu::train_norm_silu(
        {batch, positions, channels, groups, activate, address<const float>(x),
         address<const float>(weight), address<const float>(bias), address<const float>(row),
         address<float>(moments)},
        address<float>(y), threads);
  });
  m.def("train_norm_silu_gradients",
        [](int64_t batch, int64_t positions, int channels, int groups, bool activate, uintptr_t x,
           uintptr_t weight, uintptr_t bias, uintptr_t row, uintptr_t moments, uintptr_t y_grad,
           uintptr_t x_grad, uintptr_t weight_grad, uintptr_t bias_grad, uintptr_t row_grad,
           int threads) {
          const py::gil_scoped_release release;
          cdrl::cpu::train_norm_silu_gradients(
              {batch, positions, channels, groups, activate, address<const float>(x),
               address<const float>(weight), address<const float>(bias), address<const float>(row),
               address<float>(moments)},
              {address<const float>(y_grad), address<float>(x_grad), address<float>(weight_grad),
               address<float>(bias_grad), address<float>(row_grad)},
              threads);
        });
  add_resnet_gradient(m);
  add_mlp_energy(m);

  using cdrl::cpu::UNetForward;
  py::class_<UNetForward>(m, "UNetForward")
      .def(py::init<int, int, int, const std::vector<int>&, int, const std::vector<int>&>(),
           py::arg("image_channels"), py::arg("image_size"), py::arg("width"),
           py::arg("multipliers"), py::arg("blocks"), py::arg("attention"))
      .def(
          "load",
          [](UNetForward& self, const std::vector<uintptr_t>& values) {
            const auto tensors = addresses<const float>(values);
            const py::gil_scoped_release release;
            self.load(tensors);
          },
          py::arg("addresses"))
      .def(
          "run",
          [](UNetForward& self, uintptr_t x, uintptr_t rows, bool rows_per_sample, uintptr_t out,
             int64_t batch, int threads) {
            const py::gil_scoped_release release;
            self.run({address<const float>(x), address<const float>(rows), rows_per_sample,
                      address<float>(out), batch},
                     threads);
          },
          py::arg("x"), py::arg("rows"), py::arg("rows_per_sample"), py::arg("out"),
          py::arg("batch"), py::arg("threads"))
      .def("workspace_bytes", &UNetForward::workspace_bytes, py::arg("batch"), py::arg("threads"));

#ifdef CDRL_WITH_CUDA
  m.attr("cuda_architectures") = CDRL_CUDA_ARCHITECTURES;
  m.def("cuda_runtime_version", &cdrl::cuda::runtime_version);
  m.def("cuda_driver_version", &cdrl::cuda::driver_version);
  m.def("langevin_step_cuda",
        [](uintptr_t out, uintptr_t x, uintptr_t grad, int grad_type, uintptr_t anchor,
           int64_t batch, int64_t elements, uintptr_t table, float drift, float pull,
           float noise_std, float rescale, int64_t seed, int64_t draw, int64_t first_sample,
           uintptr_t rng, uintptr_t first_bad, int device, uintptr_t stream) {
          const auto arguments =
              step_arguments(out, x, grad, grad_type, anchor, batch, elements, table, drift, pull,
                             noise_std, rescale, seed, draw, first_sample, rng, first_bad);
          const py::gil_scoped_release release;
          cdrl::cuda::langevin_step(arguments, device, stream);
        });
  m.def("normal_cuda", [](uintptr_t out, int64_t batch, int64_t elements, int64_t seed,
                          int64_t draw, int64_t first_sample, int device, uintptr_t stream) {
    const auto arguments = normal_arguments(out, batch, elements, seed, draw, first_sample);
    const py::gil_scoped_release release;
    cdrl::cuda::normal(arguments, device, stream);
  });
#endif
}
