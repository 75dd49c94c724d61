// Tests UNetForward: every variant against the portable one, the same bits however samples are
// split over calls and threads, writes outside the output, and errors.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/runtime/dispatch.h"
#include "cpu/simd/exp.h"
#include "cpu/unet/forward.h"
#include "tests/check.h"

namespace {

using cdrl::cpu::UNetArguments;
using cdrl::cpu::UNetForward;
using Floats = std::vector<float>;

constexpr float kPoison = 12345.0f;

struct Shape {
  int image_channels, size, width;
  std::vector<int> multipliers;
  int blocks;
  std::vector<int> attention;

  size_t image() const { return size_t(image_channels) * size_t(size) * size_t(size); }
};

// Tensors of exactly the sizes that the network reads, so that the sanitizer reports a read beyond
// one.
class Weights {
 public:
  Weights(const Shape& shape, double scale, uint32_t seed) : scale_(scale), seed_(seed) {
    const int width = shape.width;
    layer(width * 9 * shape.image_channels, width);
    std::vector<int> skips{width};
    int h = width, size = shape.size;
    const auto attention = [&](bool present) {
      if (!present) return;
      layer(h, h), layer(3 * h * h, 3 * h), layer(h * h, h);
    };
    const auto attended = [&] {
      bool result = false;
      for (int a : shape.attention) result = result || a == size;
      return result;
    };
    const int levels = int(shape.multipliers.size());
    for (int i = 0; i < levels; ++i) {
      const int out = shape.multipliers[size_t(i)] * width;
      for (int b = 0; b < shape.blocks; ++b) {
        block(h, out), h = out, attention(attended()), skips.push_back(h);
      }
      if (i + 1 < levels) block(h, h), skips.push_back(h), size /= 2;
    }
    block(h, h), attention(true), block(h, h);
    for (int i = levels - 1; i >= 0; --i) {
      const int out = shape.multipliers[size_t(i)] * width;
      for (int b = 0; b <= shape.blocks; ++b) {
        block(h + skips.back(), out), skips.pop_back(), h = out, attention(attended());
      }
      if (i > 0) block(h, h), size *= 2;
    }
    layer(h, h), layer(h * 9 * shape.image_channels, shape.image_channels);
  }

  std::vector<const float*> tensors() const {
    std::vector<const float*> result;
    for (const Floats& tensor : tensors_) result.push_back(tensor.data());
    return result;
  }
  int64_t row = 0;

 private:
  void layer(int weight, int bias) {
    tensors_.push_back(numbers(size_t(weight), scale_, ++seed_));
    tensors_.push_back(numbers(size_t(bias), scale_, ++seed_));
  }
  void block(int in, int out) {
    layer(in, in), layer(in * out * 9, out), layer(out, out), layer(out * out * 9, out);
    if (in != out) layer(in * out, out);
    row += 2 * out;
  }

  double scale_;
  uint32_t seed_;
  std::vector<Floats> tensors_;
};

// Returns the outputs of samples [first, first + count) of a batch.
Floats run(UNetForward& network, const Shape& shape, const Floats& x, const Floats& rows,
           bool row_per_sample, size_t first, size_t count, int threads) {
  const size_t image = shape.image();
  Floats out(count * image + 2, kPoison);
  const size_t row = row_per_sample ? first * size_t(network.row()) : 0;
  network.run(
      {x.data() + first * image, rows.data() + row, row_per_sample, out.data() + 1, int64_t(count)},
      threads);
  CHECK(out.front() == kPoison && out.back() == kPoison, "wrote outside its array");
  return Floats(out.begin() + 1, out.end() - 1);
}

bool same(const Floats& part, const Floats& whole, size_t offset) {
  return std::memcmp(part.data(), whole.data() + offset, part.size() * sizeof(float)) == 0;
}

void test_network(const Shape& shape, size_t batch) {
  const Weights weights(shape, 0.2, 7);
  UNetForward network(shape.image_channels, shape.size, shape.width, shape.multipliers,
                      shape.blocks, shape.attention);
  CHECK(network.row() == weights.row, "row of %lld", (long long)network.row());
  network.load(weights.tensors());
  const Floats x = numbers(batch * shape.image(), 1.0, 3);
  const Floats rows = numbers(batch * size_t(network.row()), 0.5, 4);
  for (const bool each : {true, false}) {
    cdrl::cpu::use_variant("portable");
    const Floats plain = run(network, shape, x, rows, each, 0, batch, 1);
    double largest = 0;
    for (float v : plain) largest = std::fmax(largest, std::fabs(v));
    for (const auto& variant : cdrl::cpu::variants()) {
      cdrl::cpu::use_variant(variant.name);
      const Floats whole = run(network, shape, x, rows, each, 0, batch, 1);
      for (size_t i = 0; i < whole.size(); ++i) {
        CHECK(std::fabs(whole[i] - plain[i]) <= 1e-5 * largest, "%s, element %zu: %g, not %g",
              variant.name, i, whole[i], plain[i]);
      }
      CHECK(same(run(network, shape, x, rows, each, 0, batch, 3), whole, 0), "threads");
      for (size_t first = 0; first < batch; first += 1 + first) {
        const size_t count = std::min(batch - first, first + 1);
        CHECK(
            same(run(network, shape, x, rows, each, first, count, 2), whole, first * shape.image()),
            "%s: samples from %zu on depend on their batch", variant.name, first);
      }
    }
  }
  run(network, shape, x, rows, false, 0, 0, 2);
  CHECK(network.workspace_bytes(64, 2) >= network.workspace_bytes(1, 1),
        "a larger batch on more threads needs a smaller workspace");
}

// Checks that the output is x with a head of zeros, and that loading again replaces the weights.
void test_load() {
  const Shape shape{1, 4, 8, {1, 2}, 1, {2}};
  const Weights weights(shape, 0.2, 1);
  const Floats zeros(8 * 9, 0.0f);
  UNetForward network(1, 4, 8, {1, 2}, 1, {2});
  const Floats x = numbers(3 * 16, 1.0, 3), rows = numbers(size_t(network.row()), 0.5, 4);
  auto tensors = weights.tensors();
  network.load(tensors);
  const Floats before = run(network, shape, x, rows, false, 0, 3, 1);
  tensors[tensors.size() - 2] = tensors[tensors.size() - 1] = zeros.data();
  network.load(tensors);
  CHECK(run(network, shape, x, rows, false, 0, 3, 1) == x, "a head of zeros adds something");
  network.load(weights.tensors());
  CHECK(run(network, shape, x, rows, false, 0, 3, 1) == before, "the first weights again differ");
  CHECK(before != x, "the network does nothing");
}

void test_exponential() {
  double worst = 0, silu_worst = 0;
  float in[16], out[16];
  for (int i = -87 * 256; i <= 88 * 256; i += 16) {
    for (int k = 0; k < 16; ++k) in[k] = float(i + k) / 256.0f + 1e-3f * float(k);
    for (float& x : in) x = std::fmin(x, 88.0f);
    exponential(Sixteen::load(in)).put(out);
    for (int k = 0; k < 16; ++k) {
      worst = std::fmax(worst, std::fabs(out[k] / std::exp(double(in[k])) - 1.0));
    }
    silu(Sixteen::load(in)).put(out);
    for (int k = 0; k < 16; ++k) {
      const double exact = double(in[k]) / (1.0 + std::exp(-double(in[k])));
      silu_worst = std::fmax(silu_worst, std::fabs(out[k] - exact) / std::fabs(exact));
    }
  }
  std::printf("largest relative errors: exp %.2e, SiLU %.2e\n", worst, silu_worst);
  CHECK(worst < 2e-7 && silu_worst < 3e-7, "%g, %g", worst, silu_worst);
  const float infinity = std::numeric_limits<float>::infinity();
  const float ends[16] = {-infinity, infinity, std::nanf(""), -1e30f, 1e30f};
  exponential(Sixteen::load(ends)).put(out);
  CHECK(out[0] < 1e-37f && out[1] > 1e38f && out[2] != out[2] && out[3] < 1e-37f && out[4] > 1e38f,
        "%g %g %g %g %g", out[0], out[1], out[2], out[3], out[4]);
}

void test_errors() {
  expect_error("divisible by 4", [] { UNetForward(1, 6, 8, {1, 2, 2}, 1, {}); });
  expect_error("divisible by 1", [] { UNetForward(1, 0, 8, {1}, 1, {}); });
  expect_error("positive", [] { UNetForward(0, 8, 8, {1}, 1, {}); });
  expect_error("positive", [] { UNetForward(1, 8, 8, {}, 1, {}); });
  expect_error("positive", [] { UNetForward(1, 8, 8, {1, 0}, 1, {}); });
  UNetForward network(1, 4, 8, {2}, 1, {});
  expect_error("no weights", [&] { network.run({}, 1); });
  expect_error("got 3", [&] { network.load(std::vector<const float*>(3, nullptr)); });
  network.load(Weights({1, 4, 8, {2}, 1, {}}, 0.2, 1).tensors());
  UNetArguments missing{};
  missing.batch = 1;
  expect_error("must not be null", [&] { network.run(missing, 1); });
  missing.batch = -1;
  expect_error("negative", [&] { network.run(missing, 1); });
}

}  // namespace

int main() {
  test_exponential();
  test_network({1, 8, 32, {1, 1}, 1, {4}}, 19);
  test_network({3, 8, 20, {1, 2, 2}, 1, {8, 2}}, 5);
  test_network({2, 10, 10, {2, 1}, 2, {10}}, 3);
  test_network({1, 5, 6, {3}, 1, {}}, 40);
  test_load();
  test_errors();
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
