// Convolutions whose weights are learned, a part of the patches; compiled once for each instruction
// set. Winograd's F(2×2, 3×3) forward and back:
//
//   y = Aᵀ [U ⊙ (Bᵀ x B)] A with U = G w Gᵀ, summed over channels;  dU = (A dy Aᵀ) ⊙ (Bᵀ x B),
//   summed over patches, and dw = Gᵀ dU G; dx is the convolution of dy with flipped weights.
#include "cpu/kernels.h"
#include "cpu/winograd.h"

namespace {

using cdrl::cpu::ConvPart;
using cdrl::cpu::ConvShape;

// Where the patches' positions are in an array (batch, height, width, channels).
class Positions {
 public:
  Positions(const ConvShape& shape, int channels) : shape_(shape), channels_(channels) {}

  int count = 0;

  void find(int64_t first, int64_t end) {
    const int across = (shape_.width + 1) / 2, down = (shape_.height + 1) / 2;
    count = int(end - first);
    int column = int(first % across), row = int(first / across % down);
    int64_t sample = first / across / down;
    for (int p = 0; p < count; ++p) {
      row_[p] = 2 * row, column_[p] = 2 * column;
      corner_[p] = ((sample * shape_.height + 2 * row) * shape_.width + 2 * column) * channels_;
      if (++column < across) continue;
      column = 0;
      if (++row < down) continue;
      row = 0, ++sample;
    }
  }

  // Address of the result at (i, j) of a patch, both 0 or 1; null beyond an odd border.
  template <class T>
  T* at(T* array, int p, int i, int j) const {
    const bool inside = row_[p] + i < shape_.height && column_[p] + j < shape_.width;
    return inside ? array + corner_[p] + (i * shape_.width + j) * int64_t(channels_) : nullptr;
  }

  // Addresses of the 4×4 positions around patch `p`; `zeros` beyond the borders.
  void around(const float* array, const float* zeros, int p, const float* (*to)[4]) const {
    const float* corner = array + corner_[p];
    for (int i = 0; i < 4; ++i) {
      const int row = row_[p] + i - 1;
      for (int j = 0; j < 4; ++j) {
        const int column = column_[p] + j - 1;
        const bool inside =
            row >= 0 && row < shape_.height && column >= 0 && column < shape_.width;
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

// Calls body(begin, end) for parts of [first, end) of at most kPatches patches and nearly one size.
template <class Body>
void each_chunk(int64_t first, int64_t end, const Body& body) {
  const int64_t all = end - first, parts = (all + kPatches - 1) / kPatches;
  for (int64_t i = 0; i < parts; ++i) {
    body(first + all * i / parts, first + all * (i + 1) / parts);
  }
}

// Bᵀ x B of every patch and block: [product][block][patch].
void transform_all(const Positions& positions, const float* x, const float* zeros, int blocks,
                   float* to) {
  const int64_t block = positions.count * int64_t(kBlock);
  for (int p = 0; p < positions.count; ++p) {
    const float* around[4][4];
    positions.around(x, zeros, p, around);
    for (int n = 0; n < blocks; ++n) {
      transform_patch([&](int i, int j) { return Sixteen::load(around[i][j] + n * kBlock); },
                      to + n * block + p * kBlock, blocks * block);
    }
  }
}

// Row i of A times a column of two.
template <int i>
inline Sixteen spread_row(const Sixteen& a, const Sixteen& b) {
  if constexpr (i == 0) return a;
  if constexpr (i == 1) return a.plus(b);
  if constexpr (i == 2) return a.minus(b);
  return b.times(-1.0f);
}

// Row i of A d Aᵀ, d being two rows of two, to `out` with `step` from one product to the next.
template <int i>
inline void spread(const Sixteen* d, float* out, int64_t step) {
  const Sixteen left = spread_row<i>(d[0], d[2]), right = spread_row<i>(d[1], d[3]);
  spread_row<0>(left, right).put(out + 4 * i * step);
  spread_row<1>(left, right).put(out + (4 * i + 1) * step);
  spread_row<2>(left, right).put(out + (4 * i + 2) * step);
  spread_row<3>(left, right).put(out + (4 * i + 3) * step);
}

// A dy Aᵀ of every patch and block: [product][block][patch]; and dy added to `bias`.
void spread_all(const Positions& positions, const float* y_grad, const float* zeros, int blocks,
                float* to, float* bias) {
  const int64_t block = positions.count * int64_t(kBlock), step = blocks * block;
  for (int p = 0; p < positions.count; ++p) {
    const float* at[4];
    for (int i = 0; i < 4; ++i) {
      const float* place = positions.at(y_grad, p, i / 2, i % 2);
      at[i] = place == nullptr ? zeros : place;
    }
    for (int n = 0; n < blocks; ++n, bias += kBlock) {
      float* products = to + n * block + p * kBlock;
      const Sixteen d[4] = {Sixteen::load(at[0] + n * kBlock), Sixteen::load(at[1] + n * kBlock),
                            Sixteen::load(at[2] + n * kBlock), Sixteen::load(at[3] + n * kBlock)};
      spread<0>(d, products, step);
      spread<1>(d, products, step);
      spread<2>(d, products, step);
      spread<3>(d, products, step);
      Sixteen::load(bias).plus(d[0].plus(d[1])).plus(d[2].plus(d[3])).put(bias);
    }
    bias -= blocks * kBlock;
  }
}

// sums[r][n] += Σ over patches of x[p][r] · grad[p][n]: some rows of 16 outputs.
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
  alignas(64) float found[kBlock];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
    store(found, acc[r]);
    Sixteen::load(found).plus(Sixteen::load(sums + r * kBlock)).put(sums + r * kBlock);
  }
}

using AddProducts = void (*)(const float*, const float*, int, float*);

template <int... rows>
AddProducts add_products_of(int count, std::integer_sequence<int, rows...>) {
  static constexpr AddProducts found[] = {add_products<rows + 1>...};
  return found[count - 1];
}

// The same for the 16 rows of a block, as many at a time as registers hold.
void add_block(const float* x, const float* grad, int patches, float* sums) {
  static const Cut cut(kBlock);
  for (int i = 0, row = 0; i < cut.tiles; row += cut.positions(i++)) {
    using Counts = std::make_integer_sequence<int, kTilePositions>;
    add_products_of(cut.positions(i), Counts())(x + row, grad, patches, sums + row * kBlock);
  }
}

// G times a column of three.
inline void transform_taps(const Sixteen* w, Sixteen* out) {
  const Sixteen outer = w[0].plus(w[2]);
  out[0] = w[0];
  out[1] = outer.plus(w[1]).times(0.5f);
  out[2] = outer.minus(w[1]).times(0.5f);
  out[3] = w[2];
}

// Gᵀ times a column of four.
inline void gather_taps(const Sixteen* u, Sixteen* out) {
  const Sixteen sum = u[1].plus(u[2]).times(0.5f);
  out[0] = u[0].plus(sum);
  out[1] = u[1].minus(u[2]).times(0.5f);
  out[2] = u[3].plus(sum);
}

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

void conv3x3_part(const ConvPart& part, const float* weights, const float* bias, float* y) {
  const ConvShape& shape = part.shape;
  const int in = blocks_of(shape.in), out = blocks_of(shape.out);
  const int64_t square = int64_t(in) * kBlock * kBlock;
  float *products = part.memory, *transforms = products + kProducts * kTileBlocks * kPatches * kBlock;
  Positions from(shape, shape.in), to(shape, shape.out);
  each_chunk(part.first, part.end, [&](int64_t first, int64_t end) {
    from.find(first, end);
    to.find(first, end);
    transform_all(from, part.x, part.zeros, in, transforms);
    for (int n = 0; n < out; n += kTileBlocks) {
      const int outs = out - n < kTileBlocks ? out - n : kTileBlocks;
      const int64_t step = int64_t(outs) * from.count * kBlock;
      multiply_patches<Float32>(transforms, in, from.count, weights + n * square, out * square,
                                outs, products);
      for (int j = 0; j < outs; ++j) {
        const int64_t channel = (n + j) * kBlock;
        const Sixteen offset = Sixteen::load(bias == nullptr ? part.zeros : bias + channel);
        for (int p = 0; p < to.count; ++p) {
          Sixteen sums[2][2];
          transform_products(products + (j * to.count + p) * kBlock, step, sums);
          for (int i = 0; i < 4; ++i) {
            float* place = to.at(y, p, i / 2, i % 2);
            if (place != nullptr) sums[i / 2][i % 2].plus(offset).put(place + channel);
          }
        }
      }
    }
  });
}

void conv3x3_weight_part(const ConvPart& part, const float* y_grad, float* sums) {
  const ConvShape& shape = part.shape;
  const int in = blocks_of(shape.in), out = blocks_of(shape.out);
  float *transforms = part.memory, *grads = transforms + kProducts * in * kPatches * kBlock;
  float* bias = sums + kProducts * int64_t(shape.in) * shape.out;
  Positions from(shape, shape.in), to(shape, shape.out);
  each_chunk(part.first, part.end, [&](int64_t first, int64_t end) {
    from.find(first, end);
    to.find(first, end);
    transform_all(from, part.x, part.zeros, in, transforms);
    spread_all(to, y_grad, part.zeros, out, grads, bias);
    const int64_t block = from.count * int64_t(kBlock);
    const float *x = transforms, *row = grads;
    float* sum = sums;
    for (int i = 0; i < kProducts; ++i, row += out * block) {
      for (int c = 0; c < in; ++c, x += block) {
        for (int n = 0; n < out; ++n, sum += kBlock * kBlock) {
          add_block(x, row + n * block, from.count, sum);
        }
      }
    }
  });
}

void conv3x3_pack(const ConvShape& shape, const float* weight, bool transposed, int n, float* to) {
  const int64_t in = shape.in, out_step = transposed ? 9 : 9 * in;
  const int64_t in_step = transposed ? 9 * int64_t(shape.out) : 9;
  const int64_t product = int64_t(shape.in) * shape.out;
  const float* from = weight + n * kBlock * out_step;
  float* place = to + n * in * kBlock;
  for (int64_t c = 0; c < in; ++c, from += in_step, place += kBlock) {
    alignas(64) float taps[9][kBlock];
    for (int o = 0; o < kBlock; ++o) {
      for (int t = 0; t < 9; ++t) taps[transposed ? 8 - t : t][o] = from[o * out_step + t];
    }
    Sixteen columns[3][4];
    for (int j = 0; j < 3; ++j) {
      const Sixteen w[3] = {Sixteen::load(taps[j]), Sixteen::load(taps[3 + j]),
                            Sixteen::load(taps[6 + j])};
      transform_taps(w, columns[j]);
    }
    for (int i = 0; i < 4; ++i) {
      const Sixteen w[3] = {columns[0][i], columns[1][i], columns[2][i]};
      Sixteen row[4];
      transform_taps(w, row);
      for (int j = 0; j < 4; ++j) row[j].put(place + (4 * i + j) * product);
    }
  }
}

void conv3x3_unpack(const ConvShape& shape, const float* sums, int n, float* weight_grad) {
  const int64_t in = shape.in, product = in * shape.out;
  const int64_t blocks = shape.out / kBlock;
  for (int64_t c = 0; c < in; ++c) {
    const int64_t row = (c / kBlock * blocks + n) * kBlock * kBlock + c % kBlock * kBlock;
    Sixteen columns[4][3];
    for (int j = 0; j < 4; ++j) {
      Sixteen u[4];
      for (int i = 0; i < 4; ++i) u[i] = Sixteen::load(sums + row + (4 * i + j) * product);
      gather_taps(u, columns[j]);
    }
    alignas(64) float taps[9][kBlock];
    for (int i = 0; i < 3; ++i) {
      const Sixteen u[4] = {columns[0][i], columns[1][i], columns[2][i], columns[3][i]};
      Sixteen w[3];
      gather_taps(u, w);
      for (int j = 0; j < 3; ++j) w[j].put(taps[3 * i + j]);
    }
    float* to = weight_grad + (n * kBlock * in + c) * 9;
    for (int o = 0; o < kBlock; ++o) {
      for (int t = 0; t < 9; ++t) to[o * in * 9 + t] = taps[t][o];
    }
  }
}

}  // namespace cdrl::cpu::CDRL_VARIANT
