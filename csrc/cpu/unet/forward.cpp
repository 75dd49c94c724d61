// Lists the layers of a U-Net, places its buffers and shares groups of samples out among threads.
#include "cpu/unet/forward.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/conv/pack.h"
#include "cpu/runtime/dispatch.h"
#include "cpu/unet/weights.h"

namespace cdrl::cpu {

namespace {

// Positions of the first level over all samples that go through the network together: enough that
// weights are rarely read from the outer caches, few enough that maps stay in the inner ones. A
// multiple of 14 · 8 · 4, so that rows of 2×2 patches fill the widest tile, of 14 positions, at 8×8
// as well as at 28×28.
constexpr int64_t kPositions = 448;

UNetNorm norm_of(int channels) { return {nullptr, nullptr, channels, std::gcd(32, channels)}; }

bool contains(const std::vector<int>& values, int value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

}  // namespace

UNetForward::UNetForward(int image_channels, int image_size, int width,
                         const std::vector<int>& multipliers, int blocks,
                         const std::vector<int>& attention)
    : network_{} {
  const int levels = int(multipliers.size());
  if (image_channels < 1 || width < 1 || blocks < 1 || levels < 1 || levels > kMaxLevels ||
      *std::min_element(multipliers.begin(), multipliers.end()) < 1) {
    throw std::invalid_argument(
        "UNetForward: channels, width, multipliers and blocks must be positive");
  }
  const int step = 1 << (levels - 1);
  if (image_size < 1 || image_size % step != 0) {
    throw std::invalid_argument("UNetForward: an image's side must be divisible by " +
                                std::to_string(step));
  }
  network_.image_channels = image_channels;
  network_.columns = blocks_of(9 * image_channels);
  network_.size = image_size;
  network_.levels = levels;
  for (int i = 0; i < levels; ++i) {
    network_.side[i] = patch_side(image_size >> i, image_size >> i, false);
  }
  std::vector<int> widths;
  for (int multiplier : multipliers) widths.push_back(multiplier * width);
  network_.first = take(0, width);
  add_layers(widths, blocks, attention);
  network_.norm = norm_of(widths[0]);
  network_.layer = layers_.data();
  network_.layers = int(layers_.size());
}

UNetTensor UNetForward::take(int level, int channels) {
  const int blocks = blocks_of(channels);
  size_t i = 0;
  while (i < slots_.size() && (slots_[i].taken || slots_[i].level != level)) ++i;
  if (i == slots_.size()) slots_.push_back({level, blocks, true});
  slots_[i].taken = true;
  slots_[i].blocks = std::max(slots_[i].blocks, blocks);
  return {int(i), level, blocks, channels};
}

void UNetForward::release(const UNetTensor& tensor) { slots_[size_t(tensor.slot)].taken = false; }

UNetTensor UNetForward::add_block(const UNetTensor& x, const UNetTensor& skip, int channels,
                                  int resample) {
  UNetLayer layer{};
  layer.resample = resample;
  layer.in[0] = x;
  layer.in[1] = skip;
  layer.out = take(x.level - resample, channels);
  layer.norm1 = norm_of(x.channels + skip.channels);
  layer.norm2 = norm_of(channels);
  layer.row = network_.row;
  network_.row += 2 * channels;
  int64_t& plane = network_.planes[layer.out.level];
  plane = std::max<int64_t>(plane, std::max(x.blocks + skip.blocks, layer.out.blocks));
  layers_.push_back(layer);
  return layer.out;
}

UNetTensor UNetForward::add_attention(const UNetTensor& x) {
  UNetLayer layer{};
  layer.attention = true;
  layer.in[0] = x;
  layer.out = take(x.level, x.channels);
  layer.norm1 = norm_of(x.channels);
  layers_.push_back(layer);
  release(x);
  return layer.out;
}

void UNetForward::add_layers(const std::vector<int>& widths, int blocks,
                             const std::vector<int>& attention) {
  const int levels = int(widths.size());
  const auto attended = [&](const UNetTensor& x) {
    return contains(attention, network_.size >> x.level) ? add_attention(x) : x;
  };
  // Every map on the way down keeps its slot until the way up reads it.
  std::vector<UNetTensor> skips{network_.first};
  for (int level = 0; level < levels; ++level) {
    for (int b = 0; b < blocks; ++b) {
      skips.push_back(attended(add_block(skips.back(), {}, widths[size_t(level)], 0)));
    }
    if (level + 1 < levels) skips.push_back(add_block(skips.back(), {}, widths[size_t(level)], -1));
  }
  const auto next = [&](const UNetTensor& x, const UNetTensor& skip, int channels, int resample) {
    const UNetTensor out = add_block(x, skip, channels, resample);
    release(x);
    if (skip.channels > 0) release(skip);
    return out;
  };
  UNetTensor h = add_attention(add_block(skips.back(), {}, widths.back(), 0));
  h = next(h, {}, widths.back(), 0);
  for (int level = levels - 1; level >= 0; --level) {
    for (int b = 0; b <= blocks; ++b) {
      h = attended(next(h, skips.back(), widths[size_t(level)], 0));
      skips.pop_back();
    }
    if (level > 0) h = next(h, {}, widths[size_t(level)], 1);
  }
  network_.last = h;
}

void UNetForward::place_weights() {
  // The first round counts bytes, the second places.
  for (int round = 0; round < 2; ++round) {
    Pieces pieces(weights_);
    const auto weight = [&](int64_t out, int64_t in) {
      return pieces.take<float>(out * in * kBlock * kBlock);
    };
    const auto bias = [&](int64_t blocks) { return pieces.take<float>(blocks * kBlock); };
    const auto norm = [&](UNetNorm& n) {
      n.weight = pieces.take<float>(n.channels);
      n.bias = pieces.take<float>(n.channels);
    };
    network_.stem = weight(network_.first.blocks, network_.columns);
    network_.stem_bias = bias(network_.first.blocks);
    for (UNetLayer& layer : layers_) {
      const int in = layer.in[0].blocks + layer.in[1].blocks, out = layer.out.blocks;
      const auto convolution = [&](int ins) {
        return pieces.take<float>(weights_count(network_.side[layer.out.level], out, ins));
      };
      norm(layer.norm1);
      layer.conv1 = layer.attention ? weight(3 * in, in) : convolution(in);
      layer.bias1 = bias(layer.attention ? 3 * in : out);
      layer.conv2 = layer.attention ? weight(out, in) : convolution(out);
      layer.bias2 = bias(out);
      if (layer.attention) continue;
      norm(layer.norm2);
      if (layer.norm1.channels == layer.norm2.channels) continue;
      for (int i = 0; i < 2; ++i) layer.shortcut[i] = weight(out, layer.in[i].blocks);
      layer.bias_shortcut = bias(out);
    }
    norm(network_.norm);
    network_.head = weight(network_.columns, network_.last.blocks);
    network_.head_bias = bias(network_.columns);
    if (round == 0) weights_ = Memory(pieces.bytes());
  }
}

void UNetForward::load(const std::vector<const float*>& tensors) {
  size_t expected = 6;
  for (const UNetLayer& layer : layers_) {
    expected += layer.attention ? 6 : layer.norm1.channels == layer.norm2.channels ? 8 : 10;
  }
  if (tensors.size() != expected ||
      std::find(tensors.begin(), tensors.end(), nullptr) != tensors.end()) {
    throw std::invalid_argument("UNetForward.load: expected " + std::to_string(expected) +
                                " tensors, got " + std::to_string(tensors.size()));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!loaded_) place_weights();
  UNetLoader loader(network_, tensors);
  loader.stem();
  for (const UNetLayer& layer : layers_) {
    layer.attention ? loader.attention(layer) : loader.block(layer);
  }
  loader.norm(network_.norm);
  loader.head();
  loaded_ = true;
}

int64_t UNetForward::limit() const {
  const int64_t positions = int64_t(network_.size) * network_.size;
  return std::clamp<int64_t>(kPositions / positions, 1, 16);
}

size_t UNetForward::place(Workspace& workspace, int64_t size) const {
  Pieces pieces(workspace.memory);
  UNetBuffers& buffers = workspace.buffers;
  const auto positions = [&](int level) {
    return int64_t(network_.size >> level) * (network_.size >> level);
  };
  const auto map = [&](int64_t numbers, int64_t blocks) {
    return UNetBuffers::Map{pieces.take<float>(numbers * size),
                            pieces.take<double>(blocks * size * 2 * kBlock)};
  };
  workspace.slots.clear();
  for (const Slot& slot : slots_) {
    workspace.slots.push_back(map(slot.blocks * positions(slot.level) * kBlock, slot.blocks));
  }
  buffers.slot = workspace.slots.data();
  int64_t hidden = network_.last.blocks * positions(0), blocks = 0, columns = 0, keys = 0;
  int64_t queries = 0, scores = 0, groups = network_.norm.groups;
  int64_t widest = network_.last.blocks;
  for (const UNetLayer& layer : layers_) {
    const int64_t count = positions(layer.out.level);
    hidden = std::max(hidden, layer.out.blocks * count);
    blocks = std::max<int64_t>(blocks, layer.out.blocks);
    widest = std::max<int64_t>({widest, layer.in[0].blocks + layer.in[1].blocks, layer.out.blocks});
    groups = std::max<int64_t>({groups, layer.norm1.groups, layer.norm2.groups});
    if (!layer.attention) continue;
    const int64_t padded = (count + kBlock - 1) / kBlock * kBlock;
    queries = std::max(queries, layer.in[0].blocks * count);
    keys = std::max(keys, layer.in[0].blocks * padded);
    scores = std::max(scores, padded * kQueries);
  }
  columns = network_.columns * positions(0) * size;
  buffers.hidden = map(hidden * kBlock, blocks);
  for (int i = 0; i < network_.levels; ++i) {
    const int length = network_.size >> i;
    const int64_t padded = padded_positions(length, length, int(size), network_.side[i]);
    buffers.plane[i] = pieces.take<float>(network_.planes[i] * kBlock * padded);
  }
  buffers.zeroed = 0;
  buffers.affine = pieces.take<float>(widest * size * 2 * kBlock);
  buffers.groups = pieces.take<double>(2 * groups);
  buffers.columns = pieces.take<float>(columns * kBlock);
  buffers.patches = pieces.take<char>(patch_bytes(widest, false));
  buffers.qkv = pieces.take<float>(3 * queries * size * kBlock);
  buffers.q = pieces.take<float>(queries * kBlock);
  buffers.k = pieces.take<float>(keys * kBlock);
  buffers.v = pieces.take<float>(keys * kBlock);
  buffers.scores = pieces.take<float>(scores);
  buffers.reciprocals = pieces.take<float>(kQueries);
  return pieces.bytes();
}

int64_t UNetForward::workspace_bytes(int64_t batch, int threads) const {
  const Split split = split_batch(batch, threads, limit());
  Workspace unplaced;
  return int64_t(place(unplaced, split.size)) * split.threads;
}

void UNetForward::run(const UNetArguments& a, int threads) {
  if (a.batch < 0) throw std::invalid_argument("UNetForward.run: batch must not be negative");
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!loaded_) throw std::runtime_error("UNetForward.run: no weights, call load first");
  if (a.batch == 0) return;
  if (a.x == nullptr || a.rows == nullptr || a.out == nullptr) {
    throw std::invalid_argument("UNetForward.run: x, rows and out must not be null");
  }
  const int64_t image = int64_t(network_.image_channels) * network_.size * network_.size;
  const int64_t stride = a.rows_per_sample ? network_.row : 0;
  workspaces_.each_group(
      a.batch, split_batch(a.batch, threads, limit()),
      [this](Workspace& workspace, int64_t size) { return place(workspace, size); },
      [&](Workspace& workspace, int64_t first, int samples) {
        const UNetGroup group{a.x + first * image, a.rows + first * stride, stride,
                              a.out + first * image, samples};
        kernels().unet_group(network_, group, workspace.buffers);
      });
}

}  // namespace cdrl::cpu
