// The forward pass of a U-Net for a group of samples.
//
// Every sum has an order that depends on the network alone, so a sample's bits don't depend on the
// other samples of its group.
#include <cmath>

#include "cpu/conv/columns.h"
#include "cpu/conv/grid.h"
#include "cpu/conv/winograd.h"
#include "cpu/simd/exp.h"
#include "cpu/unet/attention.h"
#include "cpu/unet/moments.h"
#include "cpu/unet/network.h"

namespace {

using cdrl::cpu::UNetBuffers;
using cdrl::cpu::UNetGroup;
using cdrl::cpu::UNetLayer;
using cdrl::cpu::UNetNetwork;
using cdrl::cpu::UNetNorm;
using cdrl::cpu::UNetTensor;
using Map = UNetBuffers::Map;

constexpr double kEpsilon = 1e-6;
constexpr int kAffine = 2 * kBlock;  // a factor and a term per channel

class Group {
 public:
  Group(const UNetNetwork& network, const UNetGroup& group, UNetBuffers& buffers)
      : net_(network), group_(group), buffers_(buffers), samples_(group.samples) {}

  void run() {
    if (buffers_.zeroed != samples_) {
      for (int i = 0; i < net_.levels; ++i) {
        const int64_t count = net_.planes[i] * grid_of(i).padded * kBlock;
        std::memset(buffers_.plane[i], 0, size_t(count) * sizeof(float));
      }
      buffers_.zeroed = samples_;
    }
    stem();
    for (int i = 0; i < net_.layers; ++i) {
      const UNetLayer& layer = net_.layer[i];
      layer.attention ? attention(layer) : block(layer);
    }
    head();
  }

 private:
  Grid grid_of(int level) const {
    const int size = net_.size >> level;
    return Grid(size, size, samples_, net_.side[level]);
  }
  Map map_of(const UNetTensor& tensor) const { return buffers_.slot[tensor.slot]; }
  int64_t moments_at(int64_t block, int sample) const {
    return (block * samples_ + sample) * kMoments;
  }

  // The epilogue of a convolution that a norm follows: stores value(spot, sum) in `map` and adds it
  // to the map's moments.
  template <class Value>
  auto into(const Map& map, int blocks, const Value& value) const {
    std::memset(map.moments, 0, size_t(moments_at(blocks, 0)) * sizeof(double));
    return [=](const Spot& spot, Sixteen sum) {
      const Sixteen v = value(spot, sum);
      v.put(map.values + spot.flat);
      add_moments(map.moments + moments_at(spot.block, spot.sample), v);
    };
  }

  static auto biased(const float* bias) {
    return [bias](const Spot& spot, Sixteen sum) {
      return sum.plus(Sixteen::load(bias + spot.block * kBlock));
    };
  }

  void stem() {
    const Grid grid = grid_of(0);
    fill_columns(grid, group_.x, net_.image_channels, buffers_.columns);
    multiply(grid, buffers_.columns, net_.columns, net_.stem, net_.first.blocks,
             into(map_of(net_.first), net_.first.blocks, biased(net_.stem_bias)));
  }

  // Writes the norm of one map or two as a factor and a term per channel to buffers_.affine. Scale
  // and shift are included unless `row` is null.
  void normalize(const UNetNorm& norm, const Map* maps, const UNetTensor* in, const float* row) {
    const int blocks = in[0].blocks + in[1].blocks;
    const double positions = double(net_.size >> in[0].level) * (net_.size >> in[0].level);
    std::memset(buffers_.affine, 0, size_t(blocks * samples_ * kAffine) * sizeof(float));
    for (int s = 0; s < samples_; ++s) {
      group_moments(norm, maps, in, s, positions);
      const float* scale = row == nullptr ? nullptr : row + s * group_.row_stride;
      const int size = norm.channels / norm.groups;
      for (int c = 0, g = 0, left = size; c < norm.channels; ++c) {
        const double factor = buffers_.groups[norm.groups + g] * norm.weight[c];
        const double term = norm.bias[c] - buffers_.groups[g] * factor;
        const double more = scale == nullptr ? 1.0 : 1.0 + double(scale[c]);
        const double shift = scale == nullptr ? 0.0 : scale[norm.channels + c];
        const int place = c < in[0].channels ? c : c - in[0].channels + in[0].blocks * kBlock;
        float* to = buffers_.affine + (place / kBlock * samples_ + s) * kAffine + place % kBlock;
        to[0] = float(factor * more);
        to[kBlock] = float(term * more + shift);
        if (--left == 0) left = size, ++g;
      }
    }
  }

  // Writes the mean and the reciprocal deviation of each group of a sample's channels to
  // buffers_.groups.
  void group_moments(const UNetNorm& norm, const Map* maps, const UNetTensor* in, int sample,
                     double positions) {
    double *sums = buffers_.groups, *squares = sums + norm.groups;
    const int size = norm.channels / norm.groups;
    for (int g = 0; g < norm.groups; ++g) sums[g] = squares[g] = 0.0;
    int g = 0, left = size;
    for (int i = 0; i < 2; ++i) {
      for (int c = 0; c < in[i].channels; ++c) {
        const double* from = maps[i].moments + moments_at(c / kBlock, sample) + c % kBlock;
        sums[g] += from[0];
        squares[g] += from[kBlock];
        if (--left == 0) left = size, ++g;
      }
    }
    const double count = 1.0 / (positions * size);
    for (g = 0; g < norm.groups; ++g) {
      const double mean = sums[g] * count, variance = squares[g] * count - mean * mean;
      sums[g] = mean;
      // Rounding may make the variance slightly negative; NaN must stay NaN.
      squares[g] = 1.0 / sqrt(variance < 0.0 ? kEpsilon : variance + kEpsilon);
    }
  }

  // Calls put(spot, value) for every position of a map, normalized by buffers_.affine from block
  // `first` on.
  template <class Put>
  void each_value(const Grid& grid, const Map& map, int blocks, int first, const Put& put) const {
    for (int n = 0; n < blocks; ++n) {
      const float* affine_of = buffers_.affine + int64_t(first + n) * samples_ * kAffine;
      for (int row = 0; row < grid.height; ++row) {
        Spot spot(grid, n, row, 0);
        for (int64_t x = 0; x < grid.line; ++x, spot.next(samples_)) {
          const float* a = affine_of + spot.sample * kAffine;
          put(spot, affine(Sixteen::load(map.values + spot.flat), Sixteen::load(a),
                           Sixteen::load(a + kBlock)));
        }
      }
    }
  }

  // Writes silu(norm(x)) to a plane, from its block `first` on.
  void activate(const Grid& grid, const Map& map, int blocks, float* plane, int first) const {
    plane += first * grid.padded * kBlock;
    each_value(grid, map, blocks, first,
               [&](const Spot& spot, Sixteen v) { silu(v).put(plane + spot.padded); });
  }

  // Writes 2×2 means of silu(norm(x)) to the plane and 2×2 means of x to `raw`.
  void activate_down(const Grid& fine, const Grid& grid, const Map& map, int blocks, float* plane,
                     float* raw) const {
    for (int n = 0; n < blocks; ++n) {
      const float* affine_of = buffers_.affine + int64_t(n) * samples_ * kAffine;
      for (int row = 0; row < grid.height; ++row) {
        Spot spot(grid, n, row, 0);
        for (int64_t x = 0; x < grid.line; ++x, spot.next(samples_)) {
          const float* a = affine_of + spot.sample * kAffine;
          const Sixteen factor = Sixteen::load(a), term = Sixteen::load(a + kBlock);
          const int64_t left = 2 * (x - spot.sample) + spot.sample;
          const float* from[2] = {map.values + fine.flat_at(n, 2 * row, left),
                                  map.values + fine.flat_at(n, 2 * row + 1, left)};
          Sixteen values[4];
          for (int i = 0; i < 4; ++i) {
            values[i] = Sixteen::load(from[i / 2] + i % 2 * samples_ * kBlock);
          }
          mean(values).put(raw + spot.flat);
          for (Sixteen& v : values) v = silu(affine(v, factor, term));
          mean(values).put(plane + spot.padded);
        }
      }
    }
  }

  static Sixteen mean(const Sixteen* v) {
    return v[0].plus(v[1]).plus(v[2]).plus(v[3]).times(0.25f);
  }

  // Writes silu(norm(x)) to the plane and x to `raw`, every position doubled in both directions.
  void activate_up(const Grid& coarse, const Grid& grid, const Map& map, int blocks, float* plane,
                   float* raw) const {
    each_value(coarse, map, blocks, 0, [&](const Spot& spot, Sixteen v) {
      const int64_t position = spot.flat / kBlock - spot.block * coarse.count;
      const int row = int(position / coarse.line);
      const int64_t left = 2 * (position % coarse.line - spot.sample) + spot.sample;
      const Sixteen x = Sixteen::load(map.values + spot.flat), activated = silu(v);
      for (int i = 0; i < 4; ++i) {
        const int64_t at = left + i % 2 * samples_;
        x.put(raw + grid.flat_at(spot.block, 2 * row + i / 2, at));
        activated.put(plane + grid.padded_at(spot.block, 2 * row + i / 2, at));
      }
    });
  }

  void block(const UNetLayer& layer) {
    const UNetTensor &first = layer.in[0], &second = layer.in[1], &result = layer.out;
    const Map in[2] = {map_of(first), map_of(second)}, out = map_of(result);
    const Grid grid = grid_of(result.level), before = grid_of(first.level);
    float* plane = buffers_.plane[result.level];
    normalize(layer.norm1, in, layer.in, nullptr);
    if (layer.resample < 0) {
      activate_down(before, grid, in[0], first.blocks, plane, out.values);
    } else if (layer.resample > 0) {
      activate_up(before, grid, in[0], first.blocks, plane, out.values);
    } else {
      activate(grid, in[0], first.blocks, plane, 0);
      activate(grid, in[1], second.blocks, plane, first.blocks);
    }
    const Map hidden = buffers_.hidden;
    convolve_with(layer, grid, first.blocks + second.blocks, layer.conv1,
                  into(hidden, result.blocks, biased(layer.bias1)));
    const UNetTensor inner[2] = {{0, result.level, result.blocks, result.channels}, {}};
    normalize(layer.norm2, &hidden, inner, group_.rows + layer.row);
    activate(grid, hidden, result.blocks, plane, 0);
    const float* residual = layer.resample == 0 ? in[0].values : out.values;
    if (layer.shortcut[0] != nullptr) residual = shortcut(layer, grid, in, out.values);
    const float* bias = layer.bias2;
    convolve_with(layer, grid, result.blocks, layer.conv2,
                  into(out, result.blocks, [=](const Spot& spot, Sixteen sum) {
                    const Sixteen h = sum.plus(Sixteen::load(bias + spot.block * kBlock));
                    return h.plus(Sixteen::load(residual + spot.flat));
                  }));
  }

  template <class Finish>
  void convolve_with(const UNetLayer& layer, const Grid& grid, int in, const float* weights,
                     const Finish& finish) const {
    convolve<Float32>(grid, buffers_.plane[layer.out.level], in, weights, layer.out.blocks,
                      buffers_.patches, finish);
  }

  const float* shortcut(const UNetLayer& layer, const Grid& grid, const Map* in, float* to) const {
    const float* bias = layer.bias_shortcut;
    multiply(grid, in[0].values, layer.in[0].blocks, layer.shortcut[0], layer.out.blocks,
             [=](const Spot& spot, Sixteen sum) {
               sum.plus(Sixteen::load(bias + spot.block * kBlock)).put(to + spot.flat);
             });
    if (layer.in[1].blocks > 0) {
      multiply(grid, in[1].values, layer.in[1].blocks, layer.shortcut[1], layer.out.blocks,
               [=](const Spot& spot, Sixteen sum) {
                 sum.plus(Sixteen::load(to + spot.flat)).put(to + spot.flat);
               });
    }
    return to;
  }

  void attention(const UNetLayer& layer) {
    const UNetTensor& in = layer.in[0];
    const Map map = map_of(in), out = map_of(layer.out);
    const Grid grid = grid_of(in.level);
    float *hidden = buffers_.hidden.values, *qkv = buffers_.qkv;
    normalize(layer.norm1, &map, layer.in, nullptr);
    each_value(grid, map, in.blocks, 0,
               [&](const Spot& spot, Sixteen v) { v.put(hidden + spot.flat); });
    const float* bias = layer.bias1;
    multiply(grid, hidden, in.blocks, layer.conv1, 3 * in.blocks,
             [=](const Spot& spot, Sixteen sum) {
               sum.plus(Sixteen::load(bias + spot.block * kBlock)).put(qkv + spot.flat);
             });
    const Attention attend(buffers_, grid.height * grid.width, in.blocks);
    const float scale = float(1.0 / sqrt(double(in.channels)));
    for (int s = 0; s < samples_; ++s) attend.run(qkv, samples_, s, scale);
    bias = layer.bias2;
    multiply(grid, qkv, in.blocks, layer.conv2, in.blocks,
             into(out, in.blocks, [=](const Spot& spot, Sixteen sum) {
               const Sixteen h = sum.plus(Sixteen::load(bias + spot.block * kBlock));
               return h.plus(Sixteen::load(map.values + spot.flat));
             }));
  }

  void head() {
    const Grid grid = grid_of(0);
    const UNetTensor in[2] = {net_.last, {}};
    const Map map = map_of(net_.last);
    float *hidden = buffers_.hidden.values, *columns = buffers_.columns;
    normalize(net_.norm, &map, in, nullptr);
    each_value(grid, map, in[0].blocks, 0,
               [&](const Spot& spot, Sixteen v) { silu(v).put(hidden + spot.flat); });
    multiply(grid, hidden, in[0].blocks, net_.head, net_.columns,
             [=](const Spot& spot, Sixteen sum) { sum.put(columns + spot.flat); });
    const int64_t pixels = int64_t(net_.size) * net_.size, image = net_.image_channels * pixels;
    for (int64_t i = 0; i < samples_ * image; ++i) {
      group_.out[i] = net_.head_bias[i % image / pixels];
    }
    gather_columns(grid, columns, net_.image_channels, group_.out);
    // x is added last, in the order of the reference, because the sum of the other terms may be
    // small.
    for (int64_t i = 0; i < samples_ * image; ++i) group_.out[i] += group_.x[i];
  }

  const UNetNetwork& net_;
  const UNetGroup& group_;
  UNetBuffers& buffers_;
  int samples_;
};

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

void unet_group(const UNetNetwork& network, const UNetGroup& group, UNetBuffers& buffers) {
  Group(network, group, buffers).run();
}

}  // namespace cdrl::cpu::CDRL_VARIANT
