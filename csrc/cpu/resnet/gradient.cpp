// Packs weights, places buffers and shares groups of samples out among threads.
#include "cpu/resnet/gradient.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/conv/pack.h"
#include "cpu/runtime/dispatch.h"

namespace cdrl::cpu {

namespace {

// Positions over all samples that go through a stage together: enough that weights are rarely read
// from the outer caches, few enough that activations stay in the inner ones. With patches of 4×4
// the number of samples is that which fills kPatches patches.
constexpr int64_t kPositions = 256;

}  // namespace

ResNetGradient::ResNetGradient(int image_channels, int width, const std::vector<int>& multipliers,
                               int blocks, int height, int width_pixels, bool bfloat16)
    : width_(width), network_{} {
  const int stages = int(multipliers.size());
  if (image_channels < 1 || width < 1 || blocks < 1 || stages < 1 || stages > kMaxStages ||
      *std::min_element(multipliers.begin(), multipliers.end()) < 1) {
    throw std::invalid_argument(
        "ResNetGradient: channels, width, multipliers and blocks must be positive");
  }
  const int step = 1 << (stages - 1);
  if (height < 1 || width_pixels < 1 || height % step != 0 || width_pixels % step != 0) {
    throw std::invalid_argument("ResNetGradient: an image's sides must be divisible by " +
                                std::to_string(step));
  }
  network_.bfloat16 = bfloat16;
  network_.image_channels = image_channels;
  network_.columns = blocks_of(9 * image_channels);
  add_stages(multipliers, blocks, height, width_pixels);
}

void ResNetGradient::add_stages(const std::vector<int>& multipliers, int blocks, int height,
                                int width) {
  int channels = width_, limit = 1;
  for (size_t i = 0; i < multipliers.size(); ++i) {
    const int first = int(blocks_.size());
    const int side = patch_side(height >> i, width >> i, network_.bfloat16);
    ResNetStage stage{height >> i, width >> i, side, first, first + blocks, 0, 0};
    const int64_t positions = int64_t(stage.height) * stage.width;
    for (int b = 0; b < blocks; ++b) {
      ResNetBlock block{};
      block.in_channels = channels;
      block.out_channels = channels = multipliers[i] * width_;
      block.in = blocks_of(block.in_channels);
      block.out = blocks_of(block.out_channels);
      block.row = network_.rows;
      block.sign_bits = stage.sign_bits;
      block.signs = network_.signs;
      network_.rows += block.out * kBlock;
      network_.signs += (block.in_channels + block.out_channels) * positions;
      stage.sign_bits += (block.in + block.out) * positions;
      stage.channels = std::max({stage.channels, block.in, block.out});
      blocks_.push_back(block);
    }
    if (side == 4) {
      const int patches = patches_along(stage.height, side) * patches_along(stage.width, side);
      limit = std::max(limit, std::min(16, kPatches / patches));
    } else {
      while (limit * positions < kPositions && limit < 16) limit *= 2;
    }
    limits_.push_back(limit);
    stages_.push_back(stage);
  }
  network_.signs += int64_t(channels) * stages_.back().height * stages_.back().width;
  network_.stages = int(stages_.size());
  network_.stage = stages_.data();
  network_.block = blocks_.data();
}

void ResNetGradient::place_weights() {
  const int64_t size = network_.bfloat16 ? 2 : 4;
  // The first round counts bytes, the second places.
  for (int round = 0; round < 2; ++round) {
    Pieces pieces(weights_);
    const auto weight = [&](int out, int in, int side) {
      return pieces.take<char>(weights_count(side, out, in) * size);
    };
    const int64_t stem = int64_t(network_.columns) * blocks_[0].in * kBlock * kBlock;
    network_.stem = pieces.take<float>(stem);
    network_.stem_transposed = pieces.take<float>(stem);
    network_.stem_bias = pieces.take<float>(blocks_[0].in * kBlock);
    for (const ResNetStage& stage : stages_) {
      for (int b = stage.first; b < stage.end; ++b) {
        ResNetBlock& block = blocks_[size_t(b)];
        block.conv1 = weight(block.out, block.in, stage.side);
        block.conv2 = weight(block.out, block.out, stage.side);
        block.conv1_transposed = weight(block.in, block.out, stage.side);
        block.conv2_transposed = weight(block.out, block.out, stage.side);
        block.bias2 = pieces.take<float>(block.out * kBlock);
        if (block.in_channels == block.out_channels) continue;
        block.shortcut = weight(block.out, block.in, stage.side);
        block.shortcut_transposed = weight(block.in, block.out, stage.side);
        block.bias_shortcut = pieces.take<float>(block.out * kBlock);
      }
    }
    if (round == 0) weights_ = Memory(pieces.bytes());
  }
}

void ResNetGradient::load(const std::vector<const float*>& tensors) {
  size_t expected = 2;
  for (const ResNetBlock& b : blocks_) expected += b.in_channels == b.out_channels ? 3 : 5;
  if (tensors.size() != expected ||
      std::find(tensors.begin(), tensors.end(), nullptr) != tensors.end()) {
    throw std::invalid_argument("ResNetGradient.load: expected " + std::to_string(expected) +
                                " tensors, got " + std::to_string(tensors.size()));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!loaded_) place_weights();
  auto next = tensors.begin();
  const int inputs = 9 * network_.image_channels;
  pack(matrix(*next, width_, inputs), network_.stem, false);
  pack(transposed_matrix(*next++, width_, inputs), network_.stem_transposed, false);
  copy(*next++, network_.stem_bias, width_);
  // Convolutions are packed on all threads, for the forward pass and for the gradient.
  struct Job {
    Source from;
    void* to;
    int side;
  };
  std::vector<Job> jobs;
  for (const ResNetStage& stage : stages_) {
    const auto both = [&](const float* weight, int out, int in, void* forward, void* backward) {
      jobs.push_back({convolution(weight, out, in), forward, stage.side});
      jobs.push_back({transposed_convolution(weight, out, in), backward, stage.side});
    };
    for (int b = stage.first; b < stage.end; ++b) {
      const ResNetBlock& block = blocks_[size_t(b)];
      const int in = block.in_channels, out = block.out_channels;
      both(*next++, out, in, block.conv1, block.conv1_transposed);
      both(*next++, out, out, block.conv2, block.conv2_transposed);
      copy(*next++, block.bias2, out);
      if (block.shortcut == nullptr) continue;
      both(*next++, out, in, block.shortcut, block.shortcut_transposed);
      copy(*next++, block.bias_shortcut, out);
    }
  }
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < jobs.size(); ++i) {
    pack_convolution(jobs[i].from, jobs[i].to, network_.bfloat16, jobs[i].side);
  }
  loaded_ = true;
}

Split ResNetGradient::split(int64_t batch, int threads) const {
  return split_batch(batch, threads, limits_.back());
}

size_t ResNetGradient::place(Workspace& workspace, int64_t size) const {
  Pieces pieces(workspace.memory);
  ResNetBuffers& buffers = workspace.buffers;
  const int64_t element = network_.bfloat16 ? 2 : 4;
  for (size_t i = 0; i < stages_.size(); ++i) {
    const ResNetStage& stage = stages_[i];
    ResNetBuffers::Stage& buffer = buffers.stage[i];
    buffer.limit = int(std::min<int64_t>(size, limits_[i]));
    buffer.zeroed = 0;
    const int64_t plane = element * stage.channels * kBlock *
                          padded_positions(stage.height, stage.width, buffer.limit, stage.side);
    const ResNetBlock& block = blocks_[size_t(stage.first)];
    buffer.input = pieces.take<char>(plane);
    buffer.hidden = pieces.take<char>(plane);
    buffer.raw = block.in_channels != block.out_channels ? pieces.take<char>(plane) : nullptr;
    buffer.state = pieces.take<float>(int64_t(stage.height) * stage.width * buffer.limit *
                                      stage.channels * kBlock);
    buffer.sign_bits = pieces.take<uint16_t>(stage.sign_bits * size);
  }
  const int64_t image = int64_t(stages_[0].height) * stages_[0].width;
  buffers.columns = pieces.take<float>(image * buffers.stage[0].limit * network_.columns * kBlock);
  const auto narrower = [](const ResNetBlock& a, const ResNetBlock& b) {
    return std::max(a.in, a.out) < std::max(b.in, b.out);
  };
  const ResNetBlock& widest = *std::max_element(blocks_.begin(), blocks_.end(), narrower);
  buffers.patches =
      pieces.take<char>(patch_bytes(std::max(widest.in, widest.out), network_.bfloat16));
  buffers.rows = pieces.take<float>(network_.rows * size);
  buffers.heads = pieces.take<float>(blocks_.back().out * kBlock * size);
  return pieces.bytes();
}

int64_t ResNetGradient::workspace_bytes(int64_t batch, int threads) const {
  const Split groups = split(batch, threads);
  Workspace unplaced;
  return int64_t(place(unplaced, groups.size)) * groups.threads;
}

void ResNetGradient::run(const ResNetArguments& a, int threads) {
  if (a.batch < 0) throw std::invalid_argument("ResNetGradient.run: batch must not be negative");
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!loaded_) throw std::runtime_error("ResNetGradient.run: no weights, call load first");
  if (a.batch == 0) return;
  if (a.y == nullptr || a.rows == nullptr || a.head == nullptr || a.energies == nullptr) {
    throw std::invalid_argument(
        "ResNetGradient.run: y, rows, head and energies must not be null; gradient and signs may");
  }
  workspaces_.each_group(
      a.batch, split(a.batch, threads),
      [this](Workspace& workspace, int64_t size) { return place(workspace, size); },
      [&](Workspace& workspace, int64_t first, int samples) {
        run_group(a, first, samples, workspace.buffers);
      });
}

void ResNetGradient::run_group(const ResNetArguments& a, int64_t first, int samples,
                               ResNetBuffers& buffers) const {
  // Copies rows and heads into padded rows, whose padding is zero from the allocation.
  const int64_t row_stride = a.rows_per_sample ? network_.rows : 0;
  for (int s = 0; s < (a.rows_per_sample ? samples : 1); ++s) {
    int64_t channels = 0;
    for (const ResNetBlock& block : blocks_) channels += block.out_channels;
    const float* from = a.rows + (a.rows_per_sample ? (first + s) * channels : 0);
    for (const ResNetBlock& block : blocks_) {
      copy(from, buffers.rows + s * row_stride + block.row, block.out_channels);
      from += block.out_channels;
    }
  }
  const int channels = blocks_.back().out_channels;
  const int64_t head_stride = a.head_per_sample ? blocks_.back().out * kBlock : 0;
  for (int s = 0; s < (a.head_per_sample ? samples : 1); ++s) {
    const float* from = a.head + (a.head_per_sample ? (first + s) * channels : 0);
    copy(from, buffers.heads + s * head_stride, channels);
  }
  const int64_t image = int64_t(network_.image_channels) * stages_[0].height * stages_[0].width;
  const ResNetGroup group{a.y + first * image,
                          buffers.rows,
                          buffers.heads,
                          row_stride,
                          head_stride,
                          a.energies + first,
                          a.gradient == nullptr ? nullptr : a.gradient + first * image,
                          a.signs == nullptr ? nullptr : a.signs + first * network_.signs,
                          samples};
  kernels().resnet_group(network_, group, buffers);
}

}  // namespace cdrl::cpu
