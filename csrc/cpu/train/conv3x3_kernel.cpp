// A part of a convolution for training and of its weight gradient, with the transforms of
// transforms.h:
//
//   y = Aᵀ [U ⊙ (Bᵀ x B)] A with U = G w Gᵀ, summed over channels
//   dw = Gᵀ dU G with dU = (A dy Aᵀ) ⊙ (Bᵀ x B), summed over patches
//   dx = the convolution of dy with reversed taps
#include "cpu/conv/winograd.h"
#include "cpu/train/conv3x3.h"

namespace {

using cdrl::cpu::ConvPart;
using cdrl::cpu::ConvShape;

// The positions of up to kPatches patches in an array (batch, height, width, channels).
template <class Rule>
class Positions {
  static constexpr int kOut = Rule::kOut, kIn = Rule::kIn;

 public:
  Positions(const ConvShape& shape, int channels) : shape_(shape), channels_(channels) {}

  int count = 0;

  void locate(int64_t first, int64_t end) {
    const int across = cdrl::cpu::patches_along(shape_.width, kOut);
    const int down = cdrl::cpu::patches_along(shape_.height, kOut);
    count = int(end - first);
    int column = int(first % across), row = int(first / across % down);
    int64_t sample = first / across / down;
    for (int p = 0; p < count; ++p) {
      row_[p] = kOut * row, column_[p] = kOut * column;
      corner_[p] = ((sample * shape_.height + row_[p]) * shape_.width + column_[p]) * channels_;
      if (++column < across) continue;
      column = 0;
      if (++row < down) continue;
      row = 0, ++sample;
    }
  }

  // Returns the address of output (i, j) of a patch, or null beyond the borders.
  template <class T>
  T* at(T* array, int p, int i, int j) const {
    const bool inside = row_[p] + i < shape_.height && column_[p] + j < shape_.width;
    return inside ? array + corner_[p] + (i * shape_.width + j) * int64_t(channels_) : nullptr;
  }

  // Writes the addresses of the inputs of patch `p`; beyond the borders they are `zeros`.
  void around(const float* array, const float* zeros, int p, const float* (*to)[kIn]) const {
    const float* corner = array + corner_[p];
    for (int i = 0; i < kIn; ++i) {
      const int row = row_[p] + i - 1;
      for (int j = 0; j < kIn; ++j) {
        const int column = column_[p] + j - 1;
        const bool inside = row >= 0 && row < shape_.height && column >= 0 && column < shape_.width;
        const int64_t place = ((i - 1) * shape_.width + j - 1) * int64_t(channels_);
        to[i][j] = inside ? corner + place : zeros;
      }
    }
  }

 private:
  const ConvShape& shape_;
  int channels_;
  int row_[kPatches], column_[kPatches];
  int64_t corner_[kPatches];
};

// Calls body(begin, end) for parts of [first, end) of nearly equal size, at most kPatches patches.
template <class Body>
void each_chunk(int64_t first, int64_t end, const Body& body) {
  const int64_t all = end - first, parts = (all + kPatches - 1) / kPatches;
  for (int64_t i = 0; i < parts; ++i) {
    body(first + all * i / parts, first + all * (i + 1) / parts);
  }
}

// Writes Bᵀ x B of every patch and block: [product][block][patch].
template <class Rule>
void transform_all(const Positions<Rule>& positions, const float* x, const float* zeros, int blocks,
                   float* to) {
  const int64_t block = positions.count * int64_t(kBlock);
  const int64_t step = product_step(blocks, positions.count);
  for (int p = 0; p < positions.count; ++p) {
    const float* around[Rule::kIn][Rule::kIn];
    positions.around(x, zeros, p, around);
    for (int n = 0; n < blocks; ++n) {
      Rule::inputs([&](int i, int j) { return around[i][j] + n * kBlock; },
                   to + n * block + p * kBlock, step);
    }
  }
}

// Writes A dy Aᵀ of every patch and block, [product][block][patch], and adds dy to `bias`.
template <class Rule>
void spread_all(const Positions<Rule>& positions, const float* y_grad, const float* zeros,
                int blocks, float* to, float* bias) {
  constexpr int side = Rule::kOut;
  const int64_t block = positions.count * int64_t(kBlock);
  const int64_t step = product_step(blocks, positions.count);
  for (int p = 0; p < positions.count; ++p) {
    const float* places[side][side];
    for (int i = 0; i < side * side; ++i) {
      const float* place = positions.at(y_grad, p, i / side, i % side);
      places[i / side][i % side] = place == nullptr ? zeros : place;
    }
    for (int n = 0; n < blocks; ++n) {
      const auto at = [&](int i, int j) { return places[i][j] + n * kBlock; };
      Rule::gradients(at, to + n * block + p * kBlock, step);
      Sixteen sum = Sixteen::load(at(0, 0));
      for (int i = 1; i < side * side; ++i) {
        sum = sum.plus(Sixteen::load(at(i / side, i % side)));
      }
      sum.plus(Sixteen::load(bias + n * kBlock)).put(bias + n * kBlock);
    }
  }
}

// sums[r][n] += Σ over patches of x[p][r] · grad[p][n], for `rows` rows of 16 outputs.
template <int rows>
void add_products(const float* x, const float* grad, int patches, float* sums) {
  using S = Step<Float32>;
  Accumulator acc[rows];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) acc[r] = zero_accumulator();
#pragma GCC unroll 1
  for (int p = 0; p < patches; ++p, x += kBlock, grad += kBlock) {
    const S::Weight w = S::weight(grad);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) S::add(acc[r], S::input(x + r), w);
  }
  alignas(64) float row[kBlock];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    store(row, acc[r]);
    Sixteen::load(row).plus(Sixteen::load(sums + r * kBlock)).put(sums + r * kBlock);
  }
}

using AddProducts = void (*)(const float*, const float*, int, float*);

template <int... rows>
AddProducts add_products_of(int count, std::integer_sequence<int, rows...>) {
  static constexpr AddProducts functions[] = {add_products<rows + 1>...};
  return functions[count - 1];
}

// The same for the 16 rows of a block, as many at a time as there are registers.
void add_block(const float* x, const float* grad, int patches, float* sums) {
  static const Cut cut(kBlock);
  for (int i = 0, row = 0; i < cut.tiles; row += cut.positions(i++)) {
    using Counts = std::make_integer_sequence<int, kTilePositions>;
    add_products_of(cut.positions(i), Counts())(x + row, grad, patches, sums + row * kBlock);
  }
}

template <class Rule>
void convolve_part(const ConvPart& part, const float* weights, const float* bias, float* y) {
  constexpr int side = Rule::kOut;
  const ConvShape& shape = part.shape;
  const int in = blocks_of(shape.in), out = blocks_of(shape.out);
  float* products = part.workspace;
  float* transforms = products + Rule::kProducts * product_step(kOuts, kPatches);
  Positions<Rule> from(shape, shape.in), to(shape, shape.out);
  each_chunk(part.first, part.end, [&](int64_t first, int64_t end) {
    from.locate(first, end);
    to.locate(first, end);
    transform_all(from, part.x, part.zeros, in, transforms);
    for (int n = 0; n < out; n += kOuts) {
      const int outs = out - n < kOuts ? out - n : kOuts;
      const int64_t step = product_step(outs, from.count);
      multiply_patches<Rule, Float32>(transforms, in, from.count,
                                      weights + weights_at(side, 0, n, out, in), outs, products);
      for (int j = 0; j < outs; ++j) {
        const int64_t channel = (n + j) * kBlock;
        const Sixteen offset = Sixteen::load(bias == nullptr ? part.zeros : bias + channel);
        for (int p = 0; p < to.count; ++p) {
          Sixteen sums[side][side];
          Rule::outputs(products + (j * to.count + p) * kBlock, step, sums);
          for (int i = 0; i < side * side; ++i) {
            float* place = to.at(y, p, i / side, i % side);
            if (place != nullptr) sums[i / side][i % side].plus(offset).put(place + channel);
          }
        }
      }
    }
  });
}

template <class Rule>
void add_weight_part(const ConvPart& part, const float* y_grad, float* sums) {
  const ConvShape& shape = part.shape;
  const int in = blocks_of(shape.in), out = blocks_of(shape.out);
  float* transforms = part.workspace;
  float* grads = transforms + Rule::kProducts * product_step(in, kPatches);
  float* bias = sums + cdrl::cpu::weight_products(shape);
  Positions<Rule> from(shape, shape.in), to(shape, shape.out);
  each_chunk(part.first, part.end, [&](int64_t first, int64_t end) {
    from.locate(first, end);
    to.locate(first, end);
    transform_all(from, part.x, part.zeros, in, transforms);
    spread_all(to, y_grad, part.zeros, out, grads, bias);
    const int64_t block = from.count * int64_t(kBlock);
    const int64_t in_step = product_step(in, from.count), out_step = product_step(out, from.count);
    float* sum = sums;
    for (int i = 0; i < Rule::kProducts; ++i) {
      for (int c = 0; c < in; ++c) {
        for (int n = 0; n < out; ++n, sum += kBlock * kBlock) {
          add_block(transforms + i * in_step + c * block, grads + i * out_step + n * block,
                    from.count, sum);
        }
      }
    }
  });
}

template <class Rule>
void pack(const ConvShape& shape, const float* weight, bool transposed, int n, float* to) {
  const int64_t in = shape.in, out_step = transposed ? 9 : 9 * in;
  const int64_t in_step = transposed ? 9 * int64_t(shape.out) : 9;
  const float* from = weight + n * kBlock * out_step;
  constexpr int side = Rule::kOut;
  const int outs = blocks_of(shape.out), ins = blocks_of(shape.in);
  float* place = to + weights_at(side, 0, n, outs, ins);
  const int64_t product = weights_at(side, 1, n, outs, ins) - weights_at(side, 0, n, outs, ins);
  for (int64_t c = 0; c < in; ++c, from += in_step, place += kBlock) {
    alignas(64) float taps[9][kBlock];
    for (int o = 0; o < kBlock; ++o) {
      for (int t = 0; t < 9; ++t) taps[transposed ? 8 - t : t][o] = from[o * out_step + t];
    }
    Sixteen columns[3][Rule::kIn];
    for (int j = 0; j < 3; ++j) {
      const Sixteen w[3] = {Sixteen::load(taps[j]), Sixteen::load(taps[3 + j]),
                            Sixteen::load(taps[6 + j])};
      Rule::taps(w, columns[j]);
    }
    for (int i = 0; i < Rule::kIn; ++i) {
      const Sixteen w[3] = {columns[0][i], columns[1][i], columns[2][i]};
      Sixteen row[Rule::kIn];
      Rule::taps(w, row);
      for (int j = 0; j < Rule::kIn; ++j) row[j].put(place + (Rule::kIn * i + j) * product);
    }
  }
}

template <class Rule>
void unpack(const ConvShape& shape, const float* sums, int n, float* weight_grad) {
  const int64_t in = shape.in, product = in * shape.out;
  const int64_t blocks = shape.out / kBlock;
  for (int64_t c = 0; c < in; ++c) {
    const int64_t row = (c / kBlock * blocks + n) * kBlock * kBlock + c % kBlock * kBlock;
    Sixteen columns[Rule::kIn][3];
    for (int j = 0; j < Rule::kIn; ++j) {
      Sixteen u[Rule::kIn];
      for (int i = 0; i < Rule::kIn; ++i) {
        u[i] = Sixteen::load(sums + row + (Rule::kIn * i + j) * product);
      }
      Rule::gather_taps(u, columns[j]);
    }
    alignas(64) float taps[9][kBlock];
    for (int i = 0; i < 3; ++i) {
      Sixteen u[Rule::kIn], w[3];
      for (int j = 0; j < Rule::kIn; ++j) u[j] = columns[j][i];
      Rule::gather_taps(u, w);
      for (int j = 0; j < 3; ++j) w[j].put(taps[3 * i + j]);
    }
    float* to = weight_grad + (n * kBlock * in + c) * 9;
    for (int o = 0; o < kBlock; ++o) {
      for (int t = 0; t < 9; ++t) to[o * in * 9 + t] = taps[t][o];
    }
  }
}

// Calls body(rule) with the rule for a shape.
template <class Body>
void by_rule(const ConvShape& shape, const Body& body) {
  if (cdrl::cpu::side_of(shape) == ByFour::kOut) {
    body(ByFour());
  } else {
    body(ByTwo());
  }
}

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

void conv3x3_part(const ConvPart& part, const float* weights, const float* bias, float* y) {
  by_rule(part.shape, [&](auto rule) { convolve_part<decltype(rule)>(part, weights, bias, y); });
}

void conv3x3_weight_part(const ConvPart& part, const float* y_grad, float* sums) {
  by_rule(part.shape, [&](auto rule) { add_weight_part<decltype(rule)>(part, y_grad, sums); });
}

void conv3x3_pack(const ConvShape& shape, const float* weight, bool transposed, int n, float* to) {
  by_rule(shape, [&](auto rule) { pack<decltype(rule)>(shape, weight, transposed, n, to); });
}

void conv3x3_unpack(const ConvShape& shape, const float* sums, int n, float* weight_grad) {
  by_rule(shape, [&](auto rule) { unpack<decltype(rule)>(shape, sums, n, weight_grad); });
}

}  // namespace cdrl::cpu::CDRL_VARIANT
