// Tests ResNetGradient: every variant and both types against plain loops in double precision, and
// the same bits however samples are split over calls and threads.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "cpu/resnet/gradient.h"
#include "cpu/runtime/dispatch.h"
#include "tests/check.h"

namespace {

using cdrl::cpu::ResNetArguments;
using cdrl::cpu::ResNetGradient;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

struct Shape {
  int image_channels, width;
  std::vector<int> multipliers;
  int blocks, height, width_pixels;
};

// The network in plain loops. It takes signs from the kernel, because rounding may flip those near
// zero.
class Reference {
 public:
  Reference(const Shape& shape, uint32_t seed) : shape_(shape) {
    const auto add = [&](int outs, int ins) {
      tensors_.push_back(numbers(size_t(outs) * ins * 9, 1.5 / std::sqrt(9.0 * ins), ++seed));
    };
    const auto bias = [&](int outs) { tensors_.push_back(numbers(size_t(outs), 0.3, ++seed)); };
    add(shape.width, shape.image_channels);
    bias(shape.width);
    int in = shape.width;
    for (int multiplier : shape.multipliers) {
      for (int b = 0; b < shape.blocks; ++b) {
        const int out = multiplier * shape.width;
        add(out, in), add(out, out), bias(out);
        if (in != out) add(out, in), bias(out);
        rows += out;
        in = out;
      }
    }
    last = in;
  }

  std::vector<const float*> tensors() const {
    std::vector<const float*> result;
    for (const Floats& tensor : tensors_) result.push_back(tensor.data());
    return result;
  }

  // Returns one sample's energy. Writes its gradient to `gradient`, and to `wrong` the largest
  // absolute value whose sign disagrees with the kernel's.
  double run(const float* y, const float* row, const float* head, const uint8_t* signs,
             Doubles& gradient, double& wrong) {
    signs_ = signs, tensor_ = 0, wrong_ = &wrong;
    height_ = shape_.height, width_ = shape_.width_pixels;
    const size_t image = size_t(height_) * width_;
    Doubles h = convolve(Doubles(y, y + shape_.image_channels * image), shape_.width, 0);
    add_bias(h, tensors_[1].data());
    tensor_ = 2;
    const double energy = stages(h, row, head, 0, shape_.width);
    gradient = transposed(h, shape_.image_channels, 0);
    return energy;
  }

  int rows = 0, last = 0;  // floats of a sample's row and head

 private:
  // Returns the energy and replaces h by the energy's gradient with respect to it.
  double stages(Doubles& h, const float* row, const float* head, size_t stage, int in) {
    if (stage == shape_.multipliers.size()) return dot(h, head);
    if (stage == 0) return blocks(h, row, head, stage, 0, in);
    const Doubles fine = h;
    const int height = height_ / 2, width = width_ / 2;
    h.assign(fine.size() / 4, 0.0);
    const auto at = [=](size_t i) {  // index of the coarse pixel that contains pixel i
      const size_t x = i % size_t(2 * width), y = i / size_t(2 * width);
      return y / 2 * size_t(width) + x / 2;
    };
    for (size_t i = 0; i < fine.size(); ++i) h[at(i)] += fine[i] / 4;
    height_ = height, width_ = width;
    const double energy = blocks(h, row, head, stage, 0, in);
    Doubles spread(fine.size());
    for (size_t i = 0; i < fine.size(); ++i) spread[i] = h[at(i)] / 4;
    h = spread;
    height_ = 2 * height, width_ = 2 * width;
    return energy;
  }

  double blocks(Doubles& h, const float* row, const float* head, size_t stage, int block, int in) {
    if (block == shape_.blocks) return stages(h, row, head, stage + 1, in);
    const int out = shape_.multipliers[stage] * shape_.width;
    const size_t first = tensor_;
    tensor_ += in == out ? 3 : 5;
    const uint8_t* s0 = take_signs(h);
    Doubles u = convolve(sloped(h, s0), out, first);
    add_bias(u, row);
    const uint8_t* s1 = take_signs(u);
    Doubles next = convolve(sloped(u, s1), out, first + 1);
    add_bias(next, tensors_[first + 2].data());
    if (in != out) {
      h = convolve(h, out, first + 3);
      add_bias(h, tensors_[first + 4].data());
    }
    for (size_t i = 0; i < next.size(); ++i) next[i] += h[i];
    const double energy = blocks(next, row + out, head, stage, block + 1, out);
    const Doubles g1 = sloped(transposed(next, out, first + 1), s1);
    h = in == out ? next : transposed(next, in, first + 3);
    const Doubles g0 = sloped(transposed(g1, in, first), s0);
    for (size_t i = 0; i < h.size(); ++i) h[i] += g0[i];
    return energy;
  }

  double dot(Doubles& h, const float* head) {
    const uint8_t* bits = take_signs(h);
    const size_t image = size_t(height_) * width_;
    double energy = 0;
    for (size_t i = 0; i < h.size(); ++i) {
      if (bits[i]) energy += h[i] * head[i / image];
      h[i] = bits[i] ? head[i / image] : 0.0;
    }
    return energy;
  }

  const uint8_t* take_signs(const Doubles& h) {
    const uint8_t* bits = signs_;
    signs_ += h.size();
    for (size_t i = 0; i < h.size(); ++i) {
      if (bits[i] > 1) *wrong_ = INFINITY;
      if ((h[i] > 0) != bool(bits[i])) *wrong_ = std::fmax(*wrong_, std::fabs(h[i]));
    }
    return bits;
  }

  static Doubles sloped(Doubles h, const uint8_t* bits) {
    for (size_t i = 0; i < h.size(); ++i) h[i] *= bits[i] ? 1.0 : 0.2;
    return h;
  }

  void add_bias(Doubles& h, const float* bias) const {
    const size_t image = size_t(height_) * width_;
    for (size_t i = 0; i < h.size(); ++i) h[i] += bias[i / image];
  }

  // Calls body(output index, input index, weight index) for every product of a convolution.
  template <class Body>
  void each_product(int outs, int ins, const Body& body) const {
    for (int o = 0; o < outs; ++o)
      for (int i = 0; i < ins; ++i)
        for (int t = 0; t < 9; ++t)
          for (int y = 0; y < height_; ++y)
            for (int x = 0; x < width_; ++x) {
              const int v = y + t / 3 - 1, u = x + t % 3 - 1;
              if (v < 0 || v >= height_ || u < 0 || u >= width_) continue;
              body(size_t((o * height_ + y) * width_ + x), size_t((i * height_ + v) * width_ + u),
                   size_t((o * ins + i) * 9 + t));
            }
  }
  Doubles convolve(const Doubles& in, int outs, size_t tensor) const {
    const size_t image = size_t(height_) * width_;
    Doubles out(outs * image, 0.0);
    const float* w = tensors_[tensor].data();
    each_product(outs, int(in.size() / image),
                 [&](size_t o, size_t i, size_t k) { out[o] += w[k] * in[i]; });
    return out;
  }
  Doubles transposed(const Doubles& out, int ins, size_t tensor) const {
    const size_t image = size_t(height_) * width_;
    Doubles in(ins * image, 0.0);
    const float* w = tensors_[tensor].data();
    each_product(int(out.size() / image), ins,
                 [&](size_t o, size_t i, size_t k) { in[i] += w[k] * out[o]; });
    return in;
  }

  Shape shape_;
  std::vector<Floats> tensors_;
  const uint8_t* signs_ = nullptr;
  size_t tensor_ = 0;
  double* wrong_ = nullptr;
  int height_ = 0, width_ = 0;
};

// Inputs and outputs of a call. Poisoned elements around the outputs must not change.
struct Call {
  static constexpr float kPoison = 12345.0f;
  size_t batch, image, row, last, signs_per_sample;
  bool row_per_sample, head_per_sample;
  Floats y, rows, heads, energies, gradient;
  std::vector<uint8_t> signs;

  Call(const Shape& shape, const Reference& reference, const ResNetGradient& network, size_t batch,
       bool row_per_sample, bool head_per_sample)
      : batch(batch),
        image(size_t(shape.image_channels) * shape.height * shape.width_pixels),
        row(size_t(reference.rows)),
        last(size_t(reference.last)),
        signs_per_sample(size_t(network.signs())),
        row_per_sample(row_per_sample),
        head_per_sample(head_per_sample),
        y(numbers(batch * image, 1.5, 100)),
        rows(numbers((row_per_sample ? batch : 1) * row, 0.5, 101)),
        heads(numbers((head_per_sample ? batch : 1) * last, 1.0, 102)),
        energies(batch + 2, kPoison),
        gradient(batch * image + 2, kPoison),
        signs(batch * signs_per_sample + 2, 77) {}

  void run(ResNetGradient& network, size_t first, size_t count, int threads,
           bool with_gradient = true, bool with_signs = true) {
    network.run(
        {y.data() + first * image, rows.data() + (row_per_sample ? first * row : 0), row_per_sample,
         heads.data() + (head_per_sample ? first * last : 0), head_per_sample,
         energies.data() + 1 + first, with_gradient ? gradient.data() + 1 + first * image : nullptr,
         with_signs ? signs.data() + 1 + first * signs_per_sample : nullptr, int64_t(count)},
        threads);
  }

  bool inside() const {
    return energies.front() == kPoison && energies.back() == kPoison &&
           gradient.front() == kPoison && gradient.back() == kPoison && signs.front() == 77 &&
           signs.back() == 77;
  }
  bool same(const Call& other) const {
    const auto bytes = [](const Floats& v) { return v.size() * sizeof(float); };
    return signs == other.signs &&
           std::memcmp(energies.data(), other.energies.data(), bytes(energies)) == 0 &&
           std::memcmp(gradient.data(), other.gradient.data(), bytes(gradient)) == 0;
  }
};

double largest[2] = {};  // error of float32 and of bfloat16

void compare(Reference& reference, const Call& call, bool half, const char* name) {
  double worst_energy = 0, worst_gradient = 0, wrong = 0;
  for (size_t s = 0; s < call.batch; ++s) {
    Doubles expected;
    const float* head = call.heads.data() + (call.head_per_sample ? s * call.last : 0);
    const double energy = reference.run(
        call.y.data() + s * call.image, call.rows.data() + (call.row_per_sample ? s * call.row : 0),
        head, call.signs.data() + 1 + s * call.signs_per_sample, expected, wrong);
    double error = 0, norm = 0;
    for (size_t i = 0; i < call.image; ++i) {
      error += std::pow(call.gradient[1 + s * call.image + i] - expected[i], 2);
      norm += std::pow(expected[i], 2);
    }
    worst_gradient = std::fmax(worst_gradient, std::sqrt(error / norm));
    const double scale = 1.0 + std::fabs(energy);
    worst_energy = std::fmax(worst_energy, std::fabs(call.energies[1 + s] - energy) / scale);
  }
  largest[half] = std::fmax(largest[half], std::fmax(worst_energy, worst_gradient));
  const double tolerance = half ? 2e-2 : 5e-6;
  CHECK(worst_energy < tolerance, "%s: energy off by %g", name, worst_energy);
  CHECK(worst_gradient < tolerance, "%s: gradient off by %g", name, worst_gradient);
  CHECK(wrong < (half ? 0.1 : 1e-4), "%s: a sign contradicts %g", name, wrong);
}

void test_network(const Shape& shape, bool half, const std::vector<size_t>& batches) {
  Reference reference(shape, 7);
  ResNetGradient network(shape.image_channels, shape.width, shape.multipliers, shape.blocks,
                         shape.height, shape.width_pixels, half);
  network.load(reference.tensors());
  int options = 0;
  for (const size_t batch : batches) {
    const bool row_per_sample = options & 1, head_per_sample = options & 2;
    options += 3;
    const std::string name = "width " + std::to_string(shape.width) + ", height " +
                             std::to_string(shape.height) + (half ? ", half" : "") + ", batch " +
                             std::to_string(batch);
    Call whole(shape, reference, network, batch, row_per_sample, head_per_sample);
    whole.run(network, 0, batch, 1);
    CHECK(whole.inside(), "%s: wrote outside its arrays", name.c_str());
    compare(reference, whole, half, name.c_str());
    // Repeats the call on threads, sample by sample, in two unequal parts, and for the value alone.
    Call again(shape, reference, network, batch, row_per_sample, head_per_sample);
    again.run(network, 0, batch, 3);
    CHECK(whole.same(again), "%s: threads change the result", name.c_str());
    Call singly(shape, reference, network, batch, row_per_sample, head_per_sample);
    for (size_t s = 0; s < batch; ++s) singly.run(network, s, 1, 2);
    CHECK(whole.same(singly), "%s: differs sample by sample", name.c_str());
    Call parts(shape, reference, network, batch, row_per_sample, head_per_sample);
    parts.run(network, 0, batch / 3, 2);
    parts.run(network, batch / 3, batch - batch / 3, 1);
    CHECK(whole.same(parts), "%s: differs in two parts", name.c_str());
    Call value(shape, reference, network, batch, row_per_sample, head_per_sample);
    value.run(network, 0, batch, 2, false, false);
    CHECK(value.energies == whole.energies, "%s: the value alone differs", name.c_str());
    for (float g : value.gradient) CHECK(g == Call::kPoison, "%s: a gradient", name.c_str());
    CHECK(value.inside(), "%s: the value alone wrote outside its array", name.c_str());
  }
}

// Checks that a non-finite sample affects neither other samples nor later calls.
void test_not_finite(bool half) {
  const Shape shape{1, 8, {1, 2}, 1, 4, 4};
  Reference reference(shape, 3);
  ResNetGradient network(1, 8, {1, 2}, 1, 4, 4, half);
  network.load(reference.tensors());
  Call fine(shape, reference, network, 5, false, false), broken = fine, after = fine;
  fine.run(network, 0, 5, 1);
  broken.y[2 * broken.image + 5] = std::numeric_limits<float>::quiet_NaN();
  broken.y[4 * broken.image + 5] = std::numeric_limits<float>::infinity();
  broken.run(network, 0, 5, 1);
  for (size_t s = 0; s < 5; ++s) {
    const bool wrong = s == 2 || s == 4;
    CHECK(wrong ? !std::isfinite(broken.energies[1 + s])
                : broken.energies[1 + s] == fine.energies[1 + s],
          "sample %zu: %g", s, broken.energies[1 + s]);
    const size_t bytes = fine.image * sizeof(float), at = 1 + s * fine.image;
    CHECK(wrong || std::memcmp(&broken.gradient[at], &fine.gradient[at], bytes) == 0,
          "sample %zu: its gradient changed", s);
  }
  after.run(network, 0, 5, 1);
  CHECK(after.same(fine), "a non-finite sample changed a later call");
}

void test_load() {
  const Shape shape{2, 8, {1, 2}, 1, 4, 6};
  Reference one(shape, 1), two(shape, 50);
  ResNetGradient network(2, 8, {1, 2}, 1, 4, 6, true);
  network.load(one.tensors());
  Call first(shape, one, network, 3, true, true), second = first, third = first;
  first.run(network, 0, 3, 1);
  network.load(two.tensors());
  second.run(network, 0, 3, 1);
  CHECK(!first.same(second), "new weights made no difference");
  compare(two, second, true, "new weights");
  network.load(one.tensors());
  third.run(network, 0, 3, 1);
  CHECK(first.same(third), "the first weights again give another result");
  CHECK(network.workspace_bytes(64, 2) > network.workspace_bytes(1, 1),
        "a larger batch on more threads needs no larger workspace");
}

void test_errors() {
  expect_error("divisible by 4", [] { ResNetGradient(1, 8, {1, 2, 2}, 1, 8, 6, false); });
  expect_error("positive", [] { ResNetGradient(0, 8, {1}, 1, 4, 4, false); });
  expect_error("positive", [] { ResNetGradient(1, 8, {}, 1, 4, 4, false); });
  expect_error("divisible by 1", [] { ResNetGradient(1, 8, {1}, 1, 0, 4, false); });
  ResNetGradient network(1, 8, {2}, 1, 4, 4, false);
  expect_error("no weights", [&] { network.run({}, 1); });
  expect_error("expected 7 tensors, got 3",
               [&] { network.load(std::vector<const float*>(3, nullptr)); });
  network.load(Reference({1, 8, {2}, 1, 4, 4}, 1).tensors());
  ResNetArguments missing{};
  missing.batch = 1;
  expect_error("must not be null", [&] { network.run(missing, 1); });
  missing.batch = -1;
  expect_error("negative", [&] { network.run(missing, 1); });
}

}  // namespace

int main() {
  const std::vector<Shape> shapes = {{1, 8, {1, 2}, 1, 6, 10},   {3, 24, {1, 2}, 2, 6, 10},
                                     {2, 32, {2, 1}, 1, 4, 8},   {3, 40, {1}, 1, 5, 7},
                                     {2, 8, {1, 1, 3}, 1, 8, 4}, {1, 16, {1}, 2, 1, 1},
                                     {1, 8, {2}, 1, 2, 45},      {3, 8, {1, 1}, 1, 32, 4}};
  for (const auto& variant : cdrl::cpu::variants()) {
    std::printf("variant %s\n", variant.name);
    cdrl::cpu::use_variant(variant.name);
    for (const bool half : {false, true}) {
      for (const Shape& shape : shapes) test_network(shape, half, {0, 1, 3, 5});
      // More samples than fit into one group.
      test_network({1, 8, {1, 1, 1}, 1, 8, 8}, half, {37});
      test_not_finite(half);
    }
    test_load();
  }
  test_errors();
  std::printf("largest errors: float32 %.1e, bfloat16 %.1e\n", largest[0], largest[1]);
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
