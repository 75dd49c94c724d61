// The compiled module cdrl_fast._C. Functions take addresses, sizes and a CUDA stream and write to
// memory of the caller, so the module doesn't depend on torch. cdrl_fast/ops checks the arguments.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

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

// Kernels use no Python object, so their calls release the GIL.
using Release = py::call_guard<py::gil_scoped_release>;

template <class T>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

template <class T>
std::vector<T*> addresses(const std::vector<uintptr_t>& values) {
  std::vector<T*> result;
  for (const uintptr_t value : values) result.push_back(address<T>(value));
  return result;
}

// The type that stands for a member in Python: addresses and enumerators are numbers, and a seed is
// signed as in torch's int64.
template <class M>
using Number = std::conditional_t<
    std::is_pointer_v<M>, uintptr_t,
    std::conditional_t<std::is_enum_v<M>, int,
                       std::conditional_t<std::is_same_v<M, uint64_t>, int64_t, M>>>;

// A struct of arguments. Python creates it by keyword, where what is left out is 0, and may set its
// attributes between calls.
template <class T>
class Arguments : public py::class_<T> {
 public:
  Arguments(py::module_& m, const char* name) : py::class_<T>(m, name) {
    // Setting attributes one by one would take twice as long.
    this->def(py::init([fields = fields_](const py::kwargs& values) {
      T arguments{};
      size_t known = 0;
      for (const auto& [name, set] : *fields) {
        if (PyObject* value = PyDict_GetItem(values.ptr(), name)) set(arguments, value), ++known;
      }
      if (known != values.size()) {
        throw py::type_error("unknown field in " + std::string(py::repr(values)));
      }
      return arguments;
    }));
  }

  // A member, or the member of a member.
  template <class... Members>
  Arguments& field(const char* name, Members... members) {
    using M = std::decay_t<decltype((std::declval<T&>().* ... .* members))>;
    const auto set = [=](T& self, Number<M> value) { (self.* ... .* members) = (M)value; };
    fields_->emplace_back(
        PyUnicode_InternFromString(name),
        [=](T& self, py::handle value) { set(self, py::cast<Number<M>>(value)); });
    const auto get = [=](const T& self) { return (Number<M>)(self.* ... .* members); };
    this->def_property(name, get, set);
    return *this;
  }

 private:
  using Fields = std::vector<std::pair<PyObject*, std::function<void(T&, py::handle)>>>;
  std::shared_ptr<Fields> fields_ = std::make_shared<Fields>();
};

void add_noise(py::module_& m) {
  using cdrl::NormalArguments;
  using cdrl::StepArguments;
  using cdrl::Stream;
  Arguments<NormalArguments>(m, "NormalArguments")
      .field("out", &NormalArguments::out)
      .field("batch", &NormalArguments::batch)
      .field("elements", &NormalArguments::elements)
      .field("seed", &NormalArguments::stream, &Stream::seed)
      .field("draw", &NormalArguments::stream, &Stream::draw)
      .field("first_sample", &NormalArguments::stream, &Stream::first_sample);
  Arguments<StepArguments>(m, "StepArguments")
      .field("out", &StepArguments::out)
      .field("x", &StepArguments::x)
      .field("grad", &StepArguments::grad)
      .field("grad_type", &StepArguments::grad_type)
      .field("anchor", &StepArguments::anchor)
      .field("table", &StepArguments::table)
      .field("first_bad", &StepArguments::first_bad)
      .field("batch", &StepArguments::batch)
      .field("elements", &StepArguments::elements)
      .field("seed", &StepArguments::stream, &Stream::seed)
      .field("draw", &StepArguments::stream, &Stream::draw)
      .field("first_sample", &StepArguments::stream, &Stream::first_sample)
      .field("rng", &StepArguments::stream, &Stream::state)
      .field("drift", &StepArguments::drift)
      .field("pull", &StepArguments::pull)
      .field("noise_std", &StepArguments::noise_std)
      .field("rescale", &StepArguments::rescale);
  m.def("normal_cpu", &cdrl::cpu::normal, Release());
  m.def("langevin_step_cpu", &cdrl::cpu::langevin_step, Release());
#ifdef CDRL_WITH_CUDA
  m.def("normal_cuda", &cdrl::cuda::normal, Release());
  m.def("langevin_step_cuda", &cdrl::cuda::langevin_step, Release());
#endif
}

void add_train(py::module_& m) {
  using cdrl::cpu::ConvGradients;
  using cdrl::cpu::ConvShape;
  using cdrl::cpu::NormSilu;
  using cdrl::cpu::NormSiluGradients;
  Arguments<ConvShape>(m, "ConvShape")
      .field("batch", &ConvShape::batch)
      .field("height", &ConvShape::height)
      .field("width", &ConvShape::width)
      .field("in_channels", &ConvShape::in)
      .field("out_channels", &ConvShape::out);
  Arguments<ConvGradients>(m, "ConvGradients")
      .field("y", &ConvGradients::y)
      .field("x", &ConvGradients::x)
      .field("weight", &ConvGradients::weight)
      .field("bias", &ConvGradients::bias);
  Arguments<NormSilu>(m, "NormSilu")
      .field("batch", &NormSilu::batch)
      .field("positions", &NormSilu::positions)
      .field("channels", &NormSilu::channels)
      .field("groups", &NormSilu::groups)
      .field("activate", &NormSilu::activate)
      .field("x", &NormSilu::x)
      .field("weight", &NormSilu::weight)
      .field("bias", &NormSilu::bias)
      .field("row", &NormSilu::row)
      .field("moments", &NormSilu::moments);
  Arguments<NormSiluGradients>(m, "NormSiluGradients")
      .field("y", &NormSiluGradients::y)
      .field("x", &NormSiluGradients::x)
      .field("weight", &NormSiluGradients::weight)
      .field("bias", &NormSiluGradients::bias)
      .field("row", &NormSiluGradients::row);
  m.def(
      "train_conv3x3",
      [](const ConvShape& shape, uintptr_t x, uintptr_t weight, uintptr_t bias, uintptr_t y,
         int threads) {
        cdrl::cpu::train_conv3x3(shape, address<const float>(x), address<const float>(weight),
                                 address<const float>(bias), address<float>(y), threads);
      },
      py::arg("shape"), py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("bias"),
      py::arg("y"), py::arg("threads"), Release());
  m.def(
      "train_conv3x3_gradients",
      [](const ConvShape& shape, uintptr_t x, uintptr_t weight, const ConvGradients& to,
         int threads) {
        cdrl::cpu::train_conv3x3_gradients(shape, address<const float>(x),
                                           address<const float>(weight), to, threads);
      },
      py::arg("shape"), py::kw_only(), py::arg("x"), py::arg("weight"), py::arg("to"),
      py::arg("threads"), Release());
  m.def(
      "train_norm_silu",
      [](const NormSilu& norm, uintptr_t y, int threads) {
        cdrl::cpu::train_norm_silu(norm, address<float>(y), threads);
      },
      py::arg("norm"), py::kw_only(), py::arg("y"), py::arg("threads"), Release());
  m.def("train_norm_silu_gradients", &cdrl::cpu::train_norm_silu_gradients, py::arg("norm"),
        py::kw_only(), py::arg("to"), py::arg("threads"), Release());
}

void add_mlp_energy(py::module_& m) {
  using cdrl::cpu::MlpCall;
  using cdrl::cpu::MlpEnergy;
  using cdrl::cpu::MlpShape;
  Arguments<MlpShape>(m, "MlpShape")
      .field("source", &MlpShape::source)
      .field("target", &MlpShape::target)
      .field("activation", &MlpShape::activation)
      .field("leak", &MlpShape::leak)
      .field("linear", &MlpShape::linear)
      .field("row", &MlpShape::row);
  Arguments<MlpCall>(m, "MlpCall")
      .field("y", &MlpCall::y)
      .field("anchor", &MlpCall::anchor)
      .field("table", &MlpCall::table)
      .field("rows", &MlpCall::rows)
      .field("rows_stride", &MlpCall::rows_stride)
      .field("value", &MlpCall::value)
      .field("gradient", &MlpCall::gradient)
      .field("batch", &MlpCall::batch)
      .field("steps", &MlpCall::steps)
      .field("seed", &MlpCall::seed)
      .field("first_sample", &MlpCall::first_sample)
      .field("draw", &MlpCall::draw)
      .field("drift", &MlpCall::drift)
      .field("pull", &MlpCall::pull)
      .field("noise_std", &MlpCall::noise_std)
      .field("rescale", &MlpCall::rescale);
  py::class_<MlpEnergy>(m, "MlpEnergy")
      .def(py::init([](std::vector<int> widths, const std::vector<MlpShape>& shapes, int activation,
                       float leak, bool half, const std::vector<uintptr_t>& weights,
                       const std::vector<uintptr_t>& biases, uintptr_t head, float constant) {
             const cdrl::cpu::MlpWeights tensors{addresses<const float>(weights),
                                                 addresses<const float>(biases),
                                                 address<const float>(head), constant};
             return std::make_unique<MlpEnergy>(std::move(widths), shapes,
                                                static_cast<cdrl::Activation>(activation), leak,
                                                half, tensors);
           }),
           py::kw_only(), py::arg("widths"), py::arg("shapes"), py::arg("activation"),
           py::arg("leak"), py::arg("half"), py::arg("weights"), py::arg("biases"),
           py::arg("head"), py::arg("constant"))
      .def(
          "run",
          [](const MlpEnergy& energy, const MlpCall& call, uintptr_t first_bad, int threads) {
            const int64_t bad = cdrl::cpu::mlp_chain(energy.program(), call, threads);
            auto* minimum = address<int64_t>(first_bad);
            if (minimum != nullptr && bad < *minimum) *minimum = bad;
          },
          py::arg("call"), py::kw_only(), py::arg("first_bad") = 0, py::arg("threads"), Release());
}

void add_resnet_gradient(py::module_& m) {
  using cdrl::cpu::ResNetArguments;
  using cdrl::cpu::ResNetGradient;
  Arguments<ResNetArguments>(m, "ResNetArguments")
      .field("y", &ResNetArguments::y)
      .field("rows", &ResNetArguments::rows)
      .field("rows_per_sample", &ResNetArguments::rows_per_sample)
      .field("head", &ResNetArguments::head)
      .field("head_per_sample", &ResNetArguments::head_per_sample)
      .field("energies", &ResNetArguments::energies)
      .field("gradient", &ResNetArguments::gradient)
      .field("signs", &ResNetArguments::signs)
      .field("batch", &ResNetArguments::batch);
  py::class_<ResNetGradient>(m, "ResNetGradient")
      .def(py::init<int, int, const std::vector<int>&, int, int, int, bool>(), py::kw_only(),
           py::arg("image_channels"), py::arg("width"), py::arg("multipliers"), py::arg("blocks"),
           py::arg("height"), py::arg("width_pixels"), py::arg("bfloat16"))
      .def(
          "load",
          [](ResNetGradient& self, const std::vector<uintptr_t>& values) {
            self.load(addresses<const float>(values));
          },
          Release())
      .def("run", &ResNetGradient::run, Release())
      .def("workspace_bytes", &ResNetGradient::workspace_bytes);
}

void add_unet_forward(py::module_& m) {
  using cdrl::cpu::UNetArguments;
  using cdrl::cpu::UNetForward;
  Arguments<UNetArguments>(m, "UNetArguments")
      .field("x", &UNetArguments::x)
      .field("rows", &UNetArguments::rows)
      .field("rows_per_sample", &UNetArguments::rows_per_sample)
      .field("out", &UNetArguments::out)
      .field("batch", &UNetArguments::batch);
  py::class_<UNetForward>(m, "UNetForward")
      .def(py::init<int, int, int, const std::vector<int>&, int, const std::vector<int>&>(),
           py::kw_only(), py::arg("image_channels"), py::arg("image_size"), py::arg("width"),
           py::arg("multipliers"), py::arg("blocks"), py::arg("attention"))
      .def(
          "load",
          [](UNetForward& self, const std::vector<uintptr_t>& values) {
            self.load(addresses<const float>(values));
          },
          Release())
      .def("run", &UNetForward::run, Release())
      .def("workspace_bytes", &UNetForward::workspace_bytes);
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
  m.def("peak_flops", &cdrl::cpu::peak_flops, Release());
#ifdef CDRL_WITH_CUDA
  m.attr("cuda_architectures") = CDRL_CUDA_ARCHITECTURES;
  m.def("cuda_runtime_version", &cdrl::cuda::runtime_version);
  m.def("cuda_driver_version", &cdrl::cuda::driver_version);
#endif
  add_noise(m);
  add_train(m);
  add_mlp_energy(m);
  add_resnet_gradient(m);
  add_unet_forward(m);
}
