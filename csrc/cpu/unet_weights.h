// Brings a U-Net's weights from torch's order into that of its kernels.
#pragma once

#include <vector>

#include "cpu/pack.h"
#include "cpu/unet_network.h"

namespace cdrl::cpu {

// Takes tensors one after the other to where they belong.
class UNetLoader {
 public:
  explicit UNetLoader(const std::vector<const float*>& tensors) : next_(tensors.begin()) {}

  void norm(const UNetNorm& norm) {
    copy(*next_++, norm.weight, norm.channels);
    copy(*next_++, norm.bias, norm.channels);
  }

  void stem(const UNetNetwork& network) {
    const int width = network.first.channels;
    pack(matrix(*next_++, width, 9 * network.image_channels), network.stem, false);
    copy(*next_++, network.stem_bias, width);
  }

  void block(const UNetLayer& layer) {
    norm(layer.norm1);
    const int out = layer.out.channels;
    convolution(layer, layer.in, layer.conv1);
    copy(*next_++, layer.bias1, out);
    norm(layer.norm2);
    const UNetTensor inner[2] = {layer.out, {}};
    convolution(layer, inner, layer.conv2);
    copy(*next_++, layer.bias2, out);
    if (layer.bias_shortcut == nullptr) return;
    // Each map's part is a matrix of its own.
    const float* from = *next_++;
    for (int i = 0; i < 2; ++i) {
      const Source part{from, out, layer.in[i].channels, 1, layer.norm1.channels, 1, 0};
      if (part.ins > 0) pack(part, layer.shortcut[i], false);
      from += part.ins;
    }
    copy(*next_++, layer.bias_shortcut, out);
  }

  void attention(const UNetLayer& layer) {
    norm(layer.norm1);
    const int channels = layer.in[0].channels, blocks = layer.in[0].blocks;
    for (int i = 0; i < 3; ++i) {
      pack(matrix(next_[0] + int64_t(i) * channels * channels, channels, channels),
           layer.conv1 + int64_t(i) * blocks * blocks * kChannels * kChannels, false);
      copy(next_[1] + int64_t(i) * channels, layer.bias1 + i * blocks * kChannels, channels);
    }
    next_ += 2;
    pack(matrix(*next_++, channels, channels), layer.conv2, false);
    copy(*next_++, layer.bias2, channels);
  }

  // Taps point the other way: a pixel gathers from its neighbours.
  void head(const UNetNetwork& network) {
    const int channels = network.norm.channels, outs = 9 * network.image_channels;
    std::vector<float> turned(size_t(outs) * size_t(channels));
    for (int o = 0; o < outs; ++o) {
      for (int c = 0; c < channels; ++c) {
        const int64_t weight = int64_t(o / 9) * channels + c;
        turned[size_t(o) * channels + c] = (*next_)[weight * 9 + 8 - o % 9];
      }
    }
    ++next_;
    pack(matrix(turned.data(), outs, channels), network.head, false);
    copy(*next_++, network.head_bias, network.image_channels);
  }

 private:
  // 3×3, its inputs being one map or two.
  void convolution(const UNetLayer& layer, const UNetTensor* in, float* to) {
    const int outs = layer.out.channels, ins = in[0].channels + in[1].channels;
    const int taps = layer.patches ? 16 : 9;
    const int64_t square = kChannels * kChannels, blocks = in[0].blocks + in[1].blocks;
    const float* from = *next_++;
    if (layer.patches) from = transformed(from, int64_t(outs) * ins);
    for (int i = 0; i < 2; ++i) {
      if (in[i].channels == 0) continue;
      if (layer.patches) {
        // A matrix for each product.
        for (int t = 0; t < taps; ++t) {
          const Source part{from + t, outs, in[i].channels, 1, int64_t(ins) * taps, taps, 0};
          pack_apart(part, to + t * layer.out.blocks * blocks * square, blocks * square);
        }
        to += in[i].blocks * square;
      } else {
        const Source part{from, outs, in[i].channels, taps, int64_t(ins) * taps, taps, 1};
        pack_apart(part, to, blocks * taps * square);
        to += in[i].blocks * taps * square;
      }
      from += int64_t(in[i].channels) * taps;
    }
  }

  // G w Gᵀ of every 3×3 weight (see winograd.h), rounded once.
  const float* transformed(const float* from, int64_t count) {
    constexpr double g[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
    transformed_.resize(size_t(count) * 16);
    float* to = transformed_.data();
    for (int64_t i = 0; i < count; ++i, from += 9) {
      for (int t = 0; t < 16; ++t) {
        double sum = 0;
        for (int k = 0; k < 9; ++k) sum += g[t / 4][k / 3] * g[t % 4][k % 3] * double(from[k]);
        *to++ = float(sum);
      }
    }
    return transformed_.data();
  }

  std::vector<float> transformed_;
  std::vector<const float*>::const_iterator next_;
};

}  // namespace cdrl::cpu
