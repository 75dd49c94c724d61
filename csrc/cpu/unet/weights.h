// Packs a U-Net's weights from torch's layout into that of its kernel.
#pragma once

#include <vector>

#include "cpu/conv/pack.h"
#include "cpu/unet/network.h"

namespace cdrl::cpu {

// Packs tensor after tensor, in the order of UNetForward::load.
class UNetLoader {
 public:
  UNetLoader(const UNetNetwork& network, const std::vector<const float*>& tensors)
      : network_(network), next_(tensors.begin()) {}

  void norm(const UNetNorm& norm) {
    copy(*next_++, norm.weight, norm.channels);
    copy(*next_++, norm.bias, norm.channels);
  }

  void stem() {
    const int width = network_.first.channels;
    pack(matrix(*next_++, width, 9 * network_.image_channels), network_.stem, false);
    copy(*next_++, network_.stem_bias, width);
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
    // Each map's part is a separate matrix.
    const float* from = *next_++;
    for (int i = 0; i < 2; ++i) {
      const Source part{from, out, layer.in[i].channels, layer.norm1.channels, 1, 0};
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
           layer.conv1 + int64_t(i) * blocks * blocks * kBlock * kBlock, false);
      copy(next_[1] + int64_t(i) * channels, layer.bias1 + i * blocks * kBlock, channels);
    }
    next_ += 2;
    pack(matrix(*next_++, channels, channels), layer.conv2, false);
    copy(*next_++, layer.bias2, channels);
  }

  // The head's taps are reversed, because gather_columns adds entries to the pixel that they refer
  // to.
  void head() {
    const int channels = network_.norm.channels, outs = 9 * network_.image_channels;
    std::vector<float> reversed(size_t(outs) * size_t(channels));
    for (int o = 0; o < outs; ++o) {
      for (int c = 0; c < channels; ++c) {
        const int64_t weight = int64_t(o / 9) * channels + c;
        reversed[size_t(o) * channels + c] = (*next_)[weight * 9 + 8 - o % 9];
      }
    }
    ++next_;
    pack(matrix(reversed.data(), outs, channels), network_.head, false);
    copy(*next_++, network_.head_bias, network_.image_channels);
  }

 private:
  // A 3×3 convolution whose inputs are one map or two.
  void convolution(const UNetLayer& layer, const UNetTensor* in, float* to) {
    const int outs = layer.out.channels, ins = in[0].channels + in[1].channels;
    const float* from = *next_++;
    for (int i = 0; i < 2; ++i) {
      const Source part{from, outs, in[i].channels, int64_t(ins) * 9, 9, 1};
      pack_products(part, to, in[0].blocks + in[1].blocks, network_.side[layer.out.level]);
      to += in[i].blocks * kBlock * kBlock;
      from += int64_t(in[i].channels) * 9;
    }
  }

  const UNetNetwork& network_;
  std::vector<const float*>::const_iterator next_;
};

}  // namespace cdrl::cpu
