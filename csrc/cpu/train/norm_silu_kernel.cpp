// Norm and SiLU of one sample, which stays in the inner caches between passes.
#include <algorithm>
#include <cmath>

#include "cpu/simd/exp.h"
#include "cpu/train/norm_silu.h"

namespace {

using cdrl::cpu::kBlock;
using cdrl::cpu::NormSilu;
using cdrl::cpu::NormSiluGradients;

constexpr double kEpsilon = 1e-6;

// One sample. The workspace has, per channel, the mean and the reciprocal deviation of its group,
// the factor and the term of act's argument, factor (x - mean) + term, and two sums.
class Sample {
 public:
  Sample(const NormSilu& norm, int64_t index, float* workspace)
      : norm_(norm),
        channels_(norm.channels),
        size_(norm.channels / norm.groups),
        x_(norm.x + index * norm.positions * norm.channels),
        scale_(norm.row == nullptr ? nullptr : norm.row + index * 2 * norm.channels),
        moments_(norm.moments + index * 2 * norm.groups),
        mean_(workspace),
        inverse_(mean_ + channels_),
        factor_(inverse_ + channels_),
        term_(factor_ + channels_),
        sums_(term_ + channels_),
        products_(sums_ + channels_) {}

  void run(float* y) {
    find_moments();
    prepare();
    each([&](int64_t at, int c, Sixteen x) {
      const Sixteen v = argument(x, c);
      (norm_.activate ? silu(v) : v).put(y + at);
    });
  }

  // Writes the gradients of x and of the row, and the sample's contribution to those of weight and
  // bias.
  void run_back(const float* y_grad, float* x_grad, float* row_grad, float* weight_grad,
                float* bias_grad) {
    prepare();
    std::fill(sums_, sums_ + 2 * channels_, 0.0f);
    each([&](int64_t at, int c, Sixteen x) {
      Sixteen grad = Sixteen::load(y_grad + at);
      if (norm_.activate) grad = grad.times(silu_slope(argument(x, c)));
      grad.put(x_grad + at);
      Sixteen::load(sums_ + c).plus(grad).put(sums_ + c);
      affine(grad, unit(x, c), Sixteen::load(products_ + c)).put(products_ + c);
    });
    reduce(row_grad, weight_grad, bias_grad);
    each([&](int64_t at, int c, Sixteen x) {
      const Sixteen grad = Sixteen::load(x_grad + at).times(Sixteen::load(factor_ + c));
      const Sixteen by_moments =
          affine(unit(x, c), Sixteen::load(products_ + c), Sixteen::load(sums_ + c));
      grad.minus(by_moments).put(x_grad + at);
    });
  }

 private:
  template <class Use>
  void each(const Use& use) const {
    for (int64_t i = 0, at = 0; i < norm_.positions; ++i) {
      for (int c = 0; c < channels_; c += kBlock, at += kBlock) {
        use(at, c, Sixteen::load(x_ + at));
      }
    }
  }

  Sixteen from_mean(const Sixteen& x, int c) const { return x.minus(Sixteen::load(mean_ + c)); }
  // (x - mean) / deviation
  Sixteen unit(const Sixteen& x, int c) const {
    return from_mean(x, c).times(Sixteen::load(inverse_ + c));
  }
  // The argument of act.
  Sixteen argument(const Sixteen& x, int c) const {
    return affine(from_mean(x, c), Sixteen::load(factor_ + c), Sixteen::load(term_ + c));
  }

  // Calls use(group, mean over the group) for sums over positions per channel.
  template <class Use>
  void each_group(const float* sums, const Use& use) const {
    for (int g = 0; g < norm_.groups; ++g) {
      double sum = 0.0;
      for (int c = g * size_; c < (g + 1) * size_; ++c) sum += double(sums[c]);
      use(g, sum / (double(norm_.positions) * size_));
    }
  }

  // Reads x twice: the second pass computes the variance and the rounding error of the first mean.
  void find_moments() {
    std::fill(sums_, sums_ + 2 * channels_, 0.0f);
    each([&](int64_t, int c, Sixteen x) { Sixteen::load(sums_ + c).plus(x).put(sums_ + c); });
    each_group(sums_, [&](int g, double mean) {
      moments_[g] = float(mean);
      std::fill(mean_ + g * size_, mean_ + (g + 1) * size_, float(mean));
    });
    std::fill(sums_, sums_ + channels_, 0.0f);
    each([&](int64_t, int c, Sixteen x) {
      const Sixteen d = from_mean(x, c);
      Sixteen::load(sums_ + c).plus(d).put(sums_ + c);
      affine(d, d, Sixteen::load(products_ + c)).put(products_ + c);
    });
    each_group(products_,
               [&](int g, double square) { moments_[norm_.groups + g] = float(square); });
    each_group(sums_, [&](int g, double error) {
      const double variance = moments_[norm_.groups + g] - error * error;
      moments_[g] = float(moments_[g] + error);
      // Rounding may make the variance slightly negative; NaN must stay NaN.
      moments_[norm_.groups + g] =
          float(1.0 / std::sqrt(variance < 0.0 ? kEpsilon : variance + kEpsilon));
    });
  }

  void prepare() {
    for (int c = 0; c < channels_; ++c) {
      const float mean = moments_[c / size_], inverse = moments_[norm_.groups + c / size_];
      const double more = scale_ == nullptr ? 1.0 : 1.0 + double(scale_[c]);
      const double shift = scale_ == nullptr ? 0.0 : scale_[channels_ + c];
      mean_[c] = mean, inverse_[c] = inverse;
      factor_[c] = float(double(inverse) * norm_.weight[c] * more);
      term_[c] = float(norm_.bias[c] * more + shift);
    }
  }

  // sums_ and products_ are the sums over positions of act's gradient and of its product with
  // unit(x). Computes the gradients of weight, bias and row from them; then replaces them by the
  // terms that the dependence of the group's moments on x subtracts from x's gradient.
  void reduce(float* row_grad, float* weight_grad, float* bias_grad) {
    for (int c = 0; c < channels_; ++c) {
      const float more = scale_ == nullptr ? 1.0f : 1.0f + scale_[c];
      weight_grad[c] = products_[c] * more;
      bias_grad[c] = sums_[c] * more;
      if (row_grad != nullptr) {
        row_grad[c] = norm_.weight[c] * products_[c] + norm_.bias[c] * sums_[c];
        row_grad[channels_ + c] = sums_[c];
      }
      sums_[c] *= factor_[c], products_[c] *= factor_[c];
    }
    for (float* sums : {sums_, products_}) {
      each_group(sums, [&](int g, double mean) {
        std::fill(sums + g * size_, sums + (g + 1) * size_, float(mean));
      });
    }
  }

  const NormSilu& norm_;
  int channels_, size_;  // size_: channels per group
  const float *x_, *scale_;
  float *moments_, *mean_, *inverse_, *factor_, *term_, *sums_, *products_;
};

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

void norm_silu_sample(const NormSilu& norm, int64_t sample, float* y, float* workspace) {
  Sample(norm, sample, workspace).run(y + sample * norm.positions * norm.channels);
}

void norm_silu_gradients_sample(const NormSilu& norm, const NormSiluGradients& to, int64_t sample,
                                float* weight_grads, float* bias_grads, float* workspace) {
  const int64_t channels = norm.channels, at = sample * norm.positions * channels;
  float* row = to.row == nullptr ? nullptr : to.row + sample * 2 * channels;
  Sample(norm, sample, workspace)
      .run_back(to.y + at, to.x + at, row, weight_grads + sample * channels,
                bias_grads + sample * channels);
}

}  // namespace cdrl::cpu::CDRL_VARIANT
