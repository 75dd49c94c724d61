// Tests convolutions and norms for training: results and gradients of every variant against plain
// loops in double precision.
#include <cmath>
#include <cstdlib>
#include <string>
#include <vector>

#include "cpu/runtime/dispatch.h"
#include "cpu/train/conv3x3.h"
#include "cpu/train/norm_silu.h"
#include "tests/check.h"

namespace {

using cdrl::cpu::ConvShape;
using cdrl::cpu::NormSilu;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

constexpr float kPoison = 12345.0f;

// An output array between two poisoned elements that must not change.
struct Guarded {
  Floats values;
  explicit Guarded(size_t count) : values(count + 2, kPoison) {}
  float* data() { return values.data() + 1; }
  bool inside() const { return values.front() == kPoison && values.back() == kPoison; }
};

void compare(Guarded& got, const Doubles& expected, double tolerance, const std::string& name) {
  double error = 0, largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error = std::fmax(error, std::fabs(got.data()[i] - expected[i]));
    largest = std::fmax(largest, std::fabs(expected[i]));
  }
  CHECK(error <= tolerance * largest, "%s: off by %g of %g", name.c_str(), error, largest);
  CHECK(got.inside(), "%s: wrote outside its array", name.c_str());
}

// Calls body(result, input, weight) with the indices of every product of a convolution.
template <class Body>
void each_product(const ConvShape& s, const Body& body) {
  for (int64_t b = 0; b < s.batch; ++b)
    for (int y = 0; y < s.height; ++y)
      for (int x = 0; x < s.width; ++x)
        for (int t = 0; t < 9; ++t) {
          const int v = y + t / 3 - 1, u = x + t % 3 - 1;
          if (v < 0 || v >= s.height || u < 0 || u >= s.width) continue;
          const size_t to = size_t((b * s.height + y) * s.width + x) * size_t(s.out);
          const size_t from = size_t((b * s.height + v) * s.width + u) * size_t(s.in);
          for (int o = 0; o < s.out; ++o)
            for (int i = 0; i < s.in; ++i) {
              body(to + size_t(o), from + size_t(i), size_t((o * s.in + i) * 9 + t));
            }
        }
}

void test_convolution(const ConvShape& s, int threads) {
  const std::string name = std::to_string(s.in) + " to " + std::to_string(s.out) + " channels, " +
                           std::to_string(s.height) + "×" + std::to_string(s.width);
  const size_t pixels = size_t(s.batch) * size_t(s.height) * size_t(s.width);
  const size_t ins = pixels * size_t(s.in), outs = pixels * size_t(s.out);
  const size_t products = size_t(s.in) * size_t(s.out) * 9;
  const Floats x = numbers(ins, 1.0, 1), weight = numbers(products, 1.0, 2);
  const Floats bias = numbers(size_t(s.out), 1.0, 3), grad = numbers(outs, 1.0, 4);
  Doubles y(outs), x_grad(ins), weight_grad(products), bias_grad(size_t(s.out));
  for (size_t k = 0; k < outs; ++k) {
    y[k] = bias[k % size_t(s.out)];
    bias_grad[k % size_t(s.out)] += grad[k];
  }
  each_product(s, [&](size_t k, size_t i, size_t w) {
    y[k] += double(weight[w]) * x[i];
    x_grad[i] += double(weight[w]) * grad[k];
    weight_grad[w] += double(x[i]) * grad[k];
  });
  Guarded result(outs), of_x(ins), of_weight(products), of_bias(size_t(s.out));
  cdrl::cpu::train_conv3x3(s, x.data(), weight.data(), bias.data(), result.data(), threads);
  compare(result, y, 2e-6, name);
  cdrl::cpu::train_conv3x3_gradients(s, x.data(), weight.data(),
                                     {grad.data(), of_x.data(), of_weight.data(), of_bias.data()},
                                     threads);
  compare(of_x, x_grad, 2e-6, name + ", x");
  compare(of_weight, weight_grad, 2e-6, name + ", weight");
  compare(of_bias, bias_grad, 2e-6, name + ", bias");
  // The other gradients must not depend on whether x's is computed.
  Guarded weight_alone(products), bias_alone(size_t(s.out));
  cdrl::cpu::train_conv3x3_gradients(s, x.data(), weight.data(),
                                     {grad.data(), nullptr, weight_alone.data(), bias_alone.data()},
                                     threads);
  CHECK(weight_alone.values == of_weight.values && bias_alone.values == of_bias.values, "%s: %s",
        name.c_str(), "without x's gradient the others differ");
}

double silu(double x) { return x / (1.0 + std::exp(-x)); }
double silu_slope(double x) {
  const double s = 1.0 / (1.0 + std::exp(-x));
  return s * (1.0 + x * (1.0 - s));
}

// A sample of a norm and the gradients of Σ grad·y, in double precision.
struct Reference {
  Doubles y, x_grad, weight_grad, bias_grad, row_grad;

  Reference(const NormSilu& n, int64_t sample, const float* grad) {
    const size_t channels = size_t(n.channels), count = size_t(n.positions) * channels;
    const float* x = n.x + size_t(sample) * count;
    const float* row = n.row == nullptr ? nullptr : n.row + size_t(sample) * 2 * channels;
    grad += size_t(sample) * count;
    y.resize(count), x_grad.resize(count), row_grad.resize(2 * channels);
    weight_grad.resize(channels), bias_grad.resize(channels);
    const size_t size = channels / size_t(n.groups);
    for (size_t g = 0; g < size_t(n.groups); ++g) {
      const auto each = [&](auto body) {
        for (size_t i = 0; i < count; ++i) {
          if (i % channels / size == g) body(i, i % channels);
        }
      };
      const double of = double(n.positions) * double(size);
      double mean = 0, variance = 0;
      each([&](size_t i, size_t) { mean += x[i] / of; });
      each([&](size_t i, size_t) { variance += std::pow(x[i] - mean, 2) / of; });
      const double inverse = 1.0 / std::sqrt(variance + 1e-6);
      double sum = 0, product = 0;
      Doubles to_unit(count);
      each([&](size_t i, size_t c) {
        const double unit = (x[i] - mean) * inverse, normed = n.weight[c] * unit + n.bias[c];
        const double more = row == nullptr ? 1.0 : 1.0 + double(row[c]);
        const double v = normed * more + (row == nullptr ? 0.0 : double(row[channels + c]));
        const double slope = grad[i] * (n.activate ? silu_slope(v) : 1.0);
        y[i] = n.activate ? silu(v) : v;
        row_grad[c] += slope * normed, row_grad[channels + c] += slope;
        weight_grad[c] += slope * more * unit, bias_grad[c] += slope * more;
        to_unit[i] = slope * more * n.weight[c];
        sum += to_unit[i] / of, product += to_unit[i] * unit / of;
      });
      each([&](size_t i, size_t) {
        x_grad[i] = inverse * (to_unit[i] - sum - (x[i] - mean) * inverse * product);
      });
    }
  }
};

void test_norm(int64_t batch, int64_t positions, int channels, int groups, bool with_row,
               bool activate, int threads) {
  const std::string name = std::to_string(channels) + " channels in " + std::to_string(groups) +
                           " groups, " + std::to_string(positions) + " positions";
  const size_t count = size_t(batch) * size_t(positions) * size_t(channels);
  Floats x = numbers(count, 3.0, 1);
  for (float& v : x) v += 2.0f;
  const Floats weight = numbers(size_t(channels), 2.0, 2), bias = numbers(size_t(channels), 1.0, 3);
  const Floats row = numbers(size_t(batch) * 2 * size_t(channels), 0.5, 4);
  const Floats grad = numbers(count, 1.0, 5);
  Floats moments(size_t(batch) * 2 * size_t(groups));
  const NormSilu norm{batch,         positions,   channels,
                      groups,        activate,    x.data(),
                      weight.data(), bias.data(), with_row ? row.data() : nullptr,
                      moments.data()};
  Guarded y(count), of_x(count), of_weight(weight.size()), of_bias(bias.size()), of_row(row.size());
  cdrl::cpu::train_norm_silu(norm, y.data(), threads);
  cdrl::cpu::train_norm_silu_gradients(norm,
                                       {grad.data(), of_x.data(), of_weight.data(), of_bias.data(),
                                        with_row ? of_row.data() : nullptr},
                                       threads);
  Reference all(norm, 0, grad.data());
  const auto append = [](Doubles& to, const Doubles& more) {
    to.insert(to.end(), more.begin(), more.end());
  };
  for (int64_t s = 1; s < batch; ++s) {
    const Reference one(norm, s, grad.data());
    append(all.y, one.y), append(all.x_grad, one.x_grad), append(all.row_grad, one.row_grad);
    for (size_t c = 0; c < size_t(channels); ++c) {
      all.weight_grad[c] += one.weight_grad[c], all.bias_grad[c] += one.bias_grad[c];
    }
  }
  const double tolerance = 5e-6;
  compare(y, all.y, tolerance, name);
  compare(of_x, all.x_grad, tolerance, name + ", x");
  compare(of_weight, all.weight_grad, tolerance, name + ", weight");
  compare(of_bias, all.bias_grad, tolerance, name + ", bias");
  if (with_row) compare(of_row, all.row_grad, tolerance, name + ", row");
  CHECK(with_row || of_row.values == Floats(row.size() + 2, kPoison), "%s: a row", name.c_str());
}

}  // namespace

int main() {
  for (const auto& variant : cdrl::cpu::variants()) {
    cdrl::cpu::use_variant(variant.name);
    test_convolution({9, 8, 8, 32, 48}, 1);
    test_convolution({9, 8, 8, 48, 16}, 3);
    test_convolution({2, 7, 5, 16, 80}, 2);
    test_convolution({1, 1, 1, 16, 16}, 2);
    test_convolution({3, 2, 31, 32, 16}, 1);
    test_norm(5, 64, 32, 32, true, true, 2);
    test_norm(3, 35, 48, 3, false, true, 1);
    test_norm(4, 16, 64, 1, true, false, 3);
    test_norm(2, 6, 80, 16, false, false, 2);
  }
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
