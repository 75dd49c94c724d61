// Tests mlp_chain: every variant against the formula in double precision, odd sizes, misaligned
// views, batches cut anywhere, threads, non-finite states, and failing allocations.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>
#include <vector>

#include "common/philox.h"
#include "cpu/mlp/energy.h"
#include "cpu/noise/noise.h"
#include "cpu/runtime/dispatch.h"
#include "tests/check.h"

static bool no_memory = false;

void* operator new(size_t size, std::align_val_t alignment) {
  const auto step = size_t(alignment);
  void* memory = no_memory ? nullptr : std::aligned_alloc(step, (size + step - 1) / step * step);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }

namespace {

using cdrl::Activation;
using cdrl::cpu::MlpCall;
using cdrl::cpu::MlpEnergy;
using cdrl::cpu::MlpShape;

constexpr float kPoison = 12345.0f;
constexpr uint64_t kSeed = 0xDEADBEEF12345678ull, kFirst = 0xFFFFFFFEull;

std::vector<float> numbers(int64_t count, uint32_t salt) {
  return ::numbers(size_t(count), 1.0, salt);
}

double apply(Activation kind, double leak, double x, bool slope) {
  const double s = 1 / (1 + std::exp(-x)), t = std::tanh(x);
  switch (kind) {
    case Activation::kLeaky:
      return slope ? (x > 0 ? 1 : leak) : (x > 0 ? x : leak * x);
    case Activation::kSilu:
      return slope ? s * (1 + x * (1 - s)) : x * s;
    case Activation::kTanh:
      return slope ? 1 - t * t : t;
    case Activation::kSoftplus:
      return slope ? s : std::log1p(std::exp(x));
    case Activation::kSigmoid:
      return slope ? s * (1 - s) : s;
    default:
      return slope ? 1 : x;
  }
}

// A network and its weights, in single precision for MlpEnergy and in double for the formula.
struct Network {
  std::vector<int> widths;
  std::vector<MlpShape> shapes;
  Activation activation;
  float leak, constant;
  std::vector<std::vector<float>> weights, biases;
  std::vector<float> head;
  int64_t rows;

  // A stem, a residual block with an identity and one with a shortcut.
  Network(int dim, int width, int outs, Activation kind)
      : widths{dim, width, width, width, outs, outs},
        activation(kind),
        leak(0.2f),
        constant(0.5f),
        head(numbers(outs, 99)),
        rows(width + 2) {
    add(0, 1, Activation::kIdentity, true, -1);
    add(1, 2, kind, true, 2);
    add(1, 3, Activation::kIdentity, false, -1);
    add(2, 3, kind, true, -1);
    add(3, 4, kind, true, -1);
    add(3, 5, Activation::kIdentity, true, -1);
    add(4, 5, kind, true, -1);
  }

  void add(int source, int target, Activation kind, bool linear, int64_t row) {
    shapes.push_back({source, target, kind, leak, linear, row});
    const int64_t ins = widths[size_t(source)], outs = widths[size_t(target)];
    const auto salt = uint32_t(shapes.size());
    weights.push_back(numbers(linear ? ins * outs : 0, salt));
    for (float& w : weights.back()) w *= std::sqrt(2.0f / float(ins));
    biases.push_back(numbers(linear && row < 0 ? outs : 0, 50 + salt));
  }

  cdrl::cpu::MlpWeights tensors() const {
    std::vector<const float*> w, b;
    for (const auto& weight : weights) w.push_back(weight.empty() ? nullptr : weight.data());
    for (const auto& bias : biases) b.push_back(bias.empty() ? nullptr : bias.data());
    return {w, b, head.data(), constant};
  }

  double gradient(const double* y, const float* row, std::vector<double>& to) const {
    std::vector<std::vector<double>> value, slope;
    for (int width : widths) value.emplace_back(width), slope.emplace_back(width);
    value[0].assign(y, y + widths[0]);
    for (size_t i = 0; i < shapes.size(); ++i) {
      const MlpShape& s = shapes[i];
      const auto& from = value[size_t(s.source)];
      auto& into = value[size_t(s.target)];
      for (size_t n = 0; n < into.size(); ++n) {
        if (!s.linear) into[n] += from[n];
        if (!s.linear) continue;
        into[n] += s.row >= 0 ? row[size_t(s.row) + n] : biases[i][n];
        for (size_t k = 0; k < from.size(); ++k) {
          into[n] += weights[i][n * from.size() + k] * apply(s.activation, leak, from[k], false);
        }
      }
    }
    double total = constant;
    for (size_t n = 0; n < head.size(); ++n) {
      total += head[n] * apply(activation, leak, value.back()[n], false);
      slope.back()[n] = head[n] * apply(activation, leak, value.back()[n], true);
    }
    for (size_t i = shapes.size(); i-- > 0;) {
      const MlpShape& s = shapes[i];
      const auto& from = slope[size_t(s.target)];
      auto& into = slope[size_t(s.source)];
      for (size_t k = 0; k < into.size(); ++k) {
        if (!s.linear) into[k] += from[k];
        if (!s.linear) continue;
        double sum = 0;
        for (size_t n = 0; n < from.size(); ++n) sum += from[n] * weights[i][n * into.size() + k];
        into[k] += sum * apply(s.activation, leak, value[size_t(s.source)][k], true);
      }
    }
    to = slope[0];
    return total;
  }
};

// A misaligned y (by one element) between two poisoned elements.
struct State {
  std::vector<float> memory;
  State(int64_t batch, int dim) : memory(numbers(batch * dim + 2, 123)) {
    memory.front() = memory.back() = kPoison;
  }
  float* data() { return memory.data() + 1; }
  bool intact() const { return memory.front() == kPoison && memory.back() == kPoison; }
};

MlpCall call_of(State& y, int64_t batch, const std::vector<float>& rows, int64_t stride) {
  MlpCall call{};
  call.y = y.data(), call.batch = batch, call.rows = rows.data(), call.rows_stride = stride;
  call.steps = 3, call.seed = kSeed, call.first_sample = kFirst, call.draw = 0xFFFFFFFDu;
  call.drift = 0.05f, call.pull = 0.1f, call.noise_std = 0.2f, call.rescale = 1.5f;
  return call;
}

void test_against_the_formula(const Network& network, int64_t batch, bool half, bool per_sample) {
  const int dim = network.widths[0];
  const double tolerance = half ? 0.06 : 3e-5;
  MlpEnergy energy(network.widths, network.shapes, network.activation, network.leak, half,
                   network.tensors());
  const int64_t stride = per_sample ? network.rows : 0;
  const auto rows = numbers(per_sample ? batch * stride : network.rows, 31);
  const auto table = numbers(4 * batch, 77);
  std::vector<float> anchor = numbers(batch * dim, 41), value(size_t(batch), kPoison);
  std::vector<float> gradient(size_t(batch * dim), kPoison);
  State y(batch, dim);
  const std::vector<float> start(y.memory);
  MlpCall call = call_of(y, batch, rows, stride);
  call.value = value.data(), call.gradient = gradient.data();
  cdrl::cpu::mlp_chain(energy.program(), call, 2);
  CHECK(y.memory == start, "a gradient changed the state");
  call.value = call.gradient = nullptr, call.anchor = anchor.data();
  if (per_sample) call.table = table.data();
  const int64_t bad = cdrl::cpu::mlp_chain(energy.program(), call, 2);
  CHECK(bad == cdrl::cpu::kNone, "first bad %lld", (long long)bad);
  CHECK(y.intact(), "wrote outside its array");
  std::vector<double> state(static_cast<size_t>(dim)), slope;
  for (int64_t s = 0; s < batch; ++s) {
    const auto n = size_t(s);
    const float* row = rows.data() + s * stride;
    for (size_t d = 0; d < state.size(); ++d) state[d] = start[1 + n * state.size() + d];
    const double f = network.gradient(state.data(), row, slope);
    CHECK(std::fabs(value[n] - f) < 3 * tolerance, "sample %zu: %g, not %g", n, value[n], f);
    for (size_t d = 0; d < state.size(); ++d) {
      const float got = gradient[n * state.size() + d];
      CHECK(std::fabs(got - slope[d]) < 3 * tolerance, "sample %zu: %g, not %g", n, got, slope[d]);
    }
    double c[4] = {call.drift, call.pull, call.noise_std, call.rescale};
    for (size_t i = 0; i < 4 && per_sample; ++i) c[i] = table[i * size_t(batch) + n];
    for (int64_t k = 0; k < call.steps; ++k) {
      network.gradient(state.data(), row, slope);
      for (size_t d = 0; d < state.size(); ++d) {
        const auto four =
            cdrl::normals(kSeed, call.draw + uint32_t(k), kFirst + uint64_t(s), uint32_t(d / 4));
        state[d] += c[0] * slope[d] - c[1] * (state[d] - anchor[n * state.size() + d]) +
                    c[2] * four.n[d % 4];
        if (k + 1 == call.steps) state[d] *= c[3];
      }
    }
    for (size_t d = 0; d < state.size(); ++d) {
      const float got = y.data()[n * state.size() + d];
      CHECK(std::fabs(got - state[d]) < 3 * tolerance, "sample %zu: %g, not %g", n, got, state[d]);
    }
  }
}

// Checks that a batch cut anywhere, on any number of threads, gives the same bits.
void test_cuts(const Network& network, bool half) {
  const int dim = network.widths[0];
  const int64_t batch = 203;
  MlpEnergy energy(network.widths, network.shapes, network.activation, network.leak, half,
                   network.tensors());
  const auto rows = numbers(network.rows, 31);
  State whole(batch, dim), parts(batch, dim);
  cdrl::cpu::mlp_chain(energy.program(), call_of(whole, batch, rows, 0), 1);
  const int64_t cuts[] = {0, 1, 14, 29, 130, batch};
  for (int i = 0; i + 1 < 6; ++i) {
    MlpCall call = call_of(parts, cuts[i + 1] - cuts[i], rows, 0);
    call.y += cuts[i] * dim, call.first_sample += uint64_t(cuts[i]);
    cdrl::cpu::mlp_chain(energy.program(), call, 3);
  }
  CHECK(whole.memory == parts.memory, "half %d: a cut batch differs", half);
}

// Checks that a failed allocation throws std::bad_alloc in the caller, on one thread and on
// several.
void test_no_memory(const Network& network) {
  MlpEnergy energy(network.widths, network.shapes, network.activation, network.leak, false,
                   network.tensors());
  const auto rows = numbers(network.rows, 31);
  State y(203, network.widths[0]);
  for (const int threads : {1, 3}) {
    bool thrown = false;
    no_memory = true;
    try {
      cdrl::cpu::mlp_chain(energy.program(), call_of(y, 203, rows, 0), threads);
    } catch (const std::bad_alloc&) {
      thrown = true;
    }
    no_memory = false;
    CHECK(thrown, "no error on %d threads", threads);
  }
  const int64_t bad = cdrl::cpu::mlp_chain(energy.program(), call_of(y, 203, rows, 0), 3);
  CHECK(bad == cdrl::cpu::kNone, "first bad %lld", (long long)bad);
}

void test_weights_are_needed(const Network& network) {
  const auto construct = [&](const cdrl::cpu::MlpWeights& weights) {
    MlpEnergy(network.widths, network.shapes, network.activation, network.leak, false, weights);
  };
  cdrl::cpu::MlpWeights weights = network.tensors();
  weights.head = nullptr;
  expect_error("there must be a head", [&] { construct(weights); });
  weights = network.tensors();
  weights.weights[1] = nullptr;
  expect_error("every map must have a weight", [&] { construct(weights); });
  weights = network.tensors();
  weights.biases.pop_back();
  expect_error("every map must have a weight", [&] { construct(weights); });
}

// Checks that the value of a NaN state is NaN for every NaN pattern, and the other samples' are
// not.
void test_nan(const Network& network, bool half) {
  const int dim = network.widths[0];
  const int64_t batch = 9;
  MlpEnergy energy(network.widths, network.shapes, network.activation, network.leak, half,
                   network.tensors());
  const auto rows = numbers(network.rows, 31);
  for (const uint32_t bits : {0x7FFFFFFFu, 0xFFFFFFFFu, 0x7FC00000u, 0x7F800001u, 0x7FFF8000u}) {
    State y(batch, dim);
    for (int d = 0; d < dim; ++d) y.data()[4 * dim + d] = cdrl::from_bits(bits);
    std::vector<float> value(batch), gradient(size_t(batch * dim));
    MlpCall call = call_of(y, batch, rows, 0);
    call.value = value.data(), call.gradient = gradient.data();
    cdrl::cpu::mlp_chain(energy.program(), call, 1);
    for (int64_t s = 0; s < batch; ++s) {
      CHECK(std::isnan(value[size_t(s)]) == (s == 4), "half %d, bits %x: %g", half, bits,
            value[size_t(s)]);
    }
  }
}

void test_not_finite(const Network& network, bool half) {
  const int dim = network.widths[0];
  const int64_t batch = 150;
  MlpEnergy energy(network.widths, network.shapes, network.activation, network.leak, half,
                   network.tensors());
  const auto rows = numbers(network.rows, 31);
  State y(batch, dim);
  y.data()[149 * dim] = std::numeric_limits<float>::infinity();
  y.data()[77 * dim] = std::numeric_limits<float>::quiet_NaN();
  const int64_t bad = cdrl::cpu::mlp_chain(energy.program(), call_of(y, batch, rows, 0), 2);
  CHECK(bad == (int64_t(0xFFFFFFFDu) << 31) + 77, "first bad %lld", (long long)bad);
}

}  // namespace

int main() {
  const Activation kinds[] = {Activation::kIdentity, Activation::kSilu, Activation::kTanh,
                              Activation::kSoftplus, Activation::kSigmoid};
  const Network first(2, 20, 48, Activation::kLeaky);
  test_no_memory(first);  // before any other call has allocated a workspace
  test_weights_are_needed(first);
  for (const auto& variant : cdrl::cpu::variants()) {
    std::printf("variant %s\n", variant.name);
    cdrl::cpu::use_variant(variant.name);
    for (const int dim : {1, 2, 4, 5, 17}) {
      for (const Activation kind : kinds) {
        const Network network(dim, 12 + dim, 33, kind);
        for (const int64_t batch : {0, 1, 5, 30}) {
          for (int options = 0; options < 4; ++options) {
            test_against_the_formula(network, batch, options & 1, options & 2);
          }
        }
      }
      const Network leaky(dim, 20, 48, Activation::kLeaky);
      test_against_the_formula(leaky, 9, false, true);
      for (const bool half : {false, true}) test_cuts(leaky, half);
      for (const bool half : {false, true}) test_not_finite(leaky, half);
      for (const bool half : {false, true}) test_nan(leaky, half);
    }
  }
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
