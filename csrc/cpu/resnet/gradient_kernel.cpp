// Energies and their gradients for a group of samples.
//
// The state h and its gradient are float32; the inputs of convolutions are rounded to the compute
// type. The forward pass keeps one bit per activation, its sign, which is all that the backward
// pass needs.
#include "cpu/conv/columns.h"
#include "cpu/conv/winograd.h"
#include "cpu/resnet/network.h"

namespace {

using cdrl::cpu::ResNetBlock;
using cdrl::cpu::ResNetBuffers;
using cdrl::cpu::ResNetGroup;
using cdrl::cpu::ResNetNetwork;
using cdrl::cpu::ResNetStage;

// One chunk of samples at one resolution.
template <class Element>
struct Chunk {
  const ResNetStage& stage;
  Grid grid;
  Element *input, *hidden, *raw;
  float* state;
  uint16_t* sign_bits;
  int first;  // index of its first sample in the group

  // Sign bits of a block's input and of conv1's result.
  uint16_t* input_sign_bits(const ResNetBlock& block) const {
    return sign_bits + block.sign_bits * grid.samples;
  }
  uint16_t* hidden_sign_bits(const ResNetBlock& block) const {
    return input_sign_bits(block) + block.in * grid.count;
  }
};

template <class Type>
class Group {
  using Element = typename Type::Element;
  using Part = Chunk<Element>;

 public:
  Group(const ResNetNetwork& network, const ResNetGroup& group, ResNetBuffers& buffers)
      : net_(network), group_(group), buffers_(buffers) {}

  void run() {
    const int last = net_.stages - 1;
    forward(last, 0, group_.samples);
    const Part top = chunk(last, 0, group_.samples);
    for (int s = 0; s < group_.samples; ++s) head(top, s);
    if (group_.gradient != nullptr) backward(last, 0, group_.samples);
  }

 private:
  Part chunk(int index, int first, int samples) {
    const ResNetStage& stage = net_.stage[index];
    ResNetBuffers::Stage& buffer = buffers_.stage[index];
    const Part part{stage,
                    Grid(stage.height, stage.width, samples, stage.side),
                    static_cast<Element*>(buffer.input),
                    static_cast<Element*>(buffer.hidden),
                    static_cast<Element*>(buffer.raw),
                    buffer.state,
                    buffer.sign_bits + first * stage.sign_bits,
                    first};
    if (buffer.zeroed != samples) {
      const size_t bytes = size_t(stage.channels * part.grid.padded) * kBlock * sizeof(Element);
      std::memset(part.input, 0, bytes);
      std::memset(part.hidden, 0, bytes);
      if (part.raw != nullptr) std::memset(part.raw, 0, bytes);
      buffer.zeroed = samples;
    }
    return part;
  }

  // Calls body(first, samples) for each part of a chunk that stage `index` takes at a time.
  template <class Body>
  void each_part(int index, int samples, const Body& body) {
    const int size = cdrl::cpu::part_of(samples, buffers_.stage[index].limit);
    for (int first = 0; first < samples; first += size) {
      body(first, samples - first < size ? samples - first : size);
    }
  }

  void forward(int index, int first, int samples) {
    const Part part = chunk(index, first, samples);
    if (index == 0) {
      stem(part);
    } else {
      each_part(index - 1, samples, [&](int offset, int count) {
        forward(index - 1, first + offset, count);
        pool(chunk(index - 1, first + offset, count), part, offset);
      });
    }
    for (int b = part.stage.first; b < part.stage.end; ++b) {
      const bool more = b + 1 < part.stage.end;
      forward(part, net_.block[b], more ? net_.block + b + 1 : nullptr);
    }
    if (group_.signs != nullptr) write_signs(part);
  }

  void backward(int index, int first, int samples) {
    const Part part = chunk(index, first, samples);
    for (int b = part.stage.end - 1; b >= part.stage.first; --b) {
      backward(part, net_.block[b], b > part.stage.first);
    }
    if (index == 0) return stem_transposed(part);
    each_part(index - 1, samples, [&](int offset, int count) {
      spread(part, chunk(index - 1, first + offset, count), offset);
      backward(index - 1, first + offset, count);
    });
  }

  // Stores h, its sign bits and the inputs of the convolutions of block `next`.
  static void enter(const Part& part, const ResNetBlock& next, const Spot& spot, Sixteen h) {
    const uint16_t bits = h.positive();
    part.input_sign_bits(next)[spot.sign_index()] = bits;
    h.put(part.state + spot.flat);
    h.sloped(bits).put(part.input + spot.padded);
    if (next.shortcut != nullptr) h.put(part.raw + spot.padded);
  }

  template <class Finish>
  void convolve(const Part& part, const Element* plane, int in, const void* weights, int out,
                const Finish& finish) const {
    ::convolve<Type>(part.grid, plane, in, weights, out, buffers_.patches, finish);
  }

  void forward(const Part& part, const ResNetBlock& block, const ResNetBlock* next) {
    const float* rows = group_.rows + part.first * group_.row_stride + block.row;
    uint16_t* sign_bits = part.hidden_sign_bits(block);
    if (block.shortcut != nullptr) {
      convolve(part, part.raw, block.in, block.shortcut, block.out,
               [&](const Spot& spot, Sixteen sum) {
                 const float* bias = block.bias_shortcut + spot.block * kBlock;
                 sum.plus(Sixteen::load(bias)).put(part.state + spot.flat);
               });
    }
    convolve(part, part.input, block.in, block.conv1, block.out,
             [&](const Spot& spot, Sixteen sum) {
               const float* row = rows + spot.sample * group_.row_stride;
               const Sixteen u = sum.plus(Sixteen::load(row + spot.block * kBlock));
               const uint16_t bits = u.positive();
               sign_bits[spot.sign_index()] = bits;
               u.sloped(bits).put(part.hidden + spot.padded);
             });
    const auto residual = [&](const Spot& spot, Sixteen sum) {
      const Sixteen biased = sum.plus(Sixteen::load(block.bias2 + spot.block * kBlock));
      return biased.plus(Sixteen::load(part.state + spot.flat));
    };
    if (next != nullptr) {
      convolve(
          part, part.hidden, block.out, block.conv2, block.out,
          [&](const Spot& spot, Sixteen sum) { enter(part, *next, spot, residual(spot, sum)); });
    } else {
      convolve(
          part, part.hidden, block.out, block.conv2, block.out,
          [&](const Spot& spot, Sixteen sum) { residual(spot, sum).put(part.state + spot.flat); });
    }
  }

  // Replaces the gradient of a block's output by that of its input, in `state` and, if another
  // block of the stage follows, rounded in `input`.
  void backward(const Part& part, const ResNetBlock& block, bool more) {
    const uint16_t* input_bits = part.input_sign_bits(block);
    const uint16_t* hidden_bits = part.hidden_sign_bits(block);
    convolve(part, part.input, block.out, block.conv2_transposed, block.out,
             [&](const Spot& spot, Sixteen sum) {
               sum.sloped(hidden_bits[spot.sign_index()]).put(part.hidden + spot.padded);
             });
    if (block.shortcut != nullptr) {
      convolve(part, part.input, block.out, block.shortcut_transposed, block.in,
               [&](const Spot& spot, Sixteen sum) { sum.put(part.state + spot.flat); });
    }
    convolve(part, part.hidden, block.out, block.conv1_transposed, block.in,
             [&](const Spot& spot, Sixteen sum) {
               const Sixteen before = Sixteen::load(part.state + spot.flat);
               const Sixteen g = before.plus(sum.sloped(input_bits[spot.sign_index()]));
               g.put(part.state + spot.flat);
               if (more) g.put(part.input + spot.padded);
             });
  }

  // h = 2×2 means of the finer stage `below`, whose samples are those of `part` from `offset` on.
  void pool(const Part& below, const Part& part, int offset) {
    const ResNetBlock& next = net_.block[part.stage.first];
    const int samples = below.grid.samples;
    for (int n = 0; n < next.in; ++n) {
      for (int row = 0; row < part.stage.height; ++row) {
        const float* upper = below.state + below.grid.flat_at(n, 2 * row, 0);
        const float* lower = below.state + below.grid.flat_at(n, 2 * row + 1, 0);
        for (int column = 0; column < part.stage.width; ++column) {
          Spot spot(part.grid, n, row, int64_t(column) * part.grid.samples + offset);
          for (int s = 0; s < samples; ++s, spot.next(part.grid.samples)) {
            const int64_t left = (2 * column * samples + s) * kBlock;
            const int64_t right = left + samples * kBlock;
            const Sixteen first = Sixteen::load(upper + left).plus(Sixteen::load(upper + right));
            const Sixteen three = first.plus(Sixteen::load(lower + left));
            enter(part, next, spot, three.plus(Sixteen::load(lower + right)).times(0.25f));
          }
        }
      }
    }
  }

  // The transpose of `pool`.
  void spread(const Part& part, const Part& below, int offset) {
    const int samples = below.grid.samples;
    for (int n = 0; n < net_.block[part.stage.first].in; ++n) {
      for (int row = 0; row < below.stage.height; ++row) {
        for (int column = 0; column < below.stage.width; ++column) {
          const int64_t x = int64_t(column / 2) * part.grid.samples + offset;
          const float* from = part.state + part.grid.flat_at(n, row / 2, x);
          Spot spot(below.grid, n, row, int64_t(column) * samples);
          for (int s = 0; s < samples; ++s, spot.next(samples), from += kBlock) {
            const Sixteen g = Sixteen::load(from).times(0.25f);
            g.put(below.state + spot.flat);
            g.put(below.input + spot.padded);
          }
        }
      }
    }
  }

  // Computes the energy of a sample in the last stage and replaces h by the energy's gradient. The
  // order of the sum depends on the network alone. As in torch's ReLU, NaN stays NaN.
  void head(const Part& part, int sample) {
    const int out = net_.block[part.stage.end - 1].out;
    const float* head = group_.heads + sample * group_.head_stride;
    double sums[kBlock] = {};
    for (int n = 0; n < out; ++n, head += kBlock) {
      for (int row = 0; row < part.stage.height; ++row) {
        for (int column = 0; column < part.stage.width; ++column) {
          const int64_t x = int64_t(column) * part.grid.samples + sample;
          float* h = part.state + part.grid.flat_at(n, row, x);
          if (group_.signs != nullptr) write_head_signs(part, sample, n, row, column, h);
          for (int i = 0; i < kBlock; ++i) {
            const bool on = !(h[i] <= 0.0f);
            sums[i] += on ? double(h[i]) * double(head[i]) : 0.0;
            h[i] = on ? head[i] : 0.0f;
          }
          Sixteen::load(h).put(part.input + part.grid.padded_at(n, row, x));
        }
      }
    }
    double energy = 0.0;
    for (double sum : sums) energy += sum;
    group_.energies[sample] = float(energy);
  }

  void stem(const Part& part) {
    const ResNetBlock& next = net_.block[0];
    const int64_t image = int64_t(part.grid.height) * part.grid.width * net_.image_channels;
    fill_columns(part.grid, group_.y + part.first * image, net_.image_channels, buffers_.columns);
    multiply(part.grid, buffers_.columns, net_.columns, net_.stem, next.in,
             [&](const Spot& spot, Sixteen sum) {
               const Sixteen bias = Sixteen::load(net_.stem_bias + spot.block * kBlock);
               enter(part, next, spot, sum.plus(bias));
             });
  }

  // The gradient of the image: every pixel adds the gradients of the 9 positions that read it.
  void stem_transposed(const Part& part) {
    const Grid& grid = part.grid;
    float* columns = buffers_.columns;
    multiply(grid, part.state, net_.block[0].in, net_.stem_transposed, net_.columns,
             [&](const Spot& spot, Sixteen sum) { sum.put(columns + spot.flat); });
    const int64_t image = int64_t(grid.height) * grid.width * net_.image_channels;
    float* out = group_.gradient + part.first * image;
    std::memset(out, 0, size_t(grid.samples * image) * sizeof(float));
    gather_columns(grid, columns, net_.image_channels, out);
  }

  // Writes a byte per sign for tests, [channel][row][column] of each sample.
  void write_signs(const Part& part) const {
    const int64_t image = int64_t(part.stage.height) * part.stage.width;
    for (int b = part.stage.first; b < part.stage.end; ++b) {
      const ResNetBlock& block = net_.block[b];
      for (int s = 0; s < part.grid.samples; ++s) {
        uint8_t* out = group_.signs + (part.first + s) * net_.signs + block.signs;
        unpack(part.input_sign_bits(block) + s, part.grid, block.in_channels, out);
        unpack(part.hidden_sign_bits(block) + s, part.grid, block.out_channels,
               out + block.in_channels * image);
      }
    }
  }

  static void unpack(const uint16_t* sign_bits, const Grid& grid, int channels, uint8_t* out) {
    for (int c = 0; c < channels; ++c) {
      const uint16_t* from = sign_bits + c / kBlock * grid.count;
      for (int64_t i = 0; i < grid.count; i += grid.samples) {
        *out++ = uint8_t(from[i] >> c % kBlock & 1);
      }
    }
  }

  void write_head_signs(const Part& part, int sample, int n, int row, int column,
                        const float* h) const {
    const int channels = net_.block[part.stage.end - 1].out_channels;
    const int64_t image = int64_t(part.stage.height) * part.stage.width;
    uint8_t* out = group_.signs + (sample + 1) * net_.signs - channels * image;
    for (int c = n * kBlock; c < channels && c < (n + 1) * kBlock; ++c) {
      out[c * image + row * part.stage.width + column] = h[c - n * kBlock] > 0.0f;
    }
  }

  const ResNetNetwork& net_;
  const ResNetGroup& group_;
  ResNetBuffers& buffers_;
};

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

void resnet_group(const ResNetNetwork& network, const ResNetGroup& group, ResNetBuffers& buffers) {
  if (network.bfloat16) {
    Group<BFloat16>(network, group, buffers).run();
  } else {
    Group<Float32>(network, group, buffers).run();
  }
}

}  // namespace cdrl::cpu::CDRL_VARIANT
