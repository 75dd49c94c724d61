// The forward pass of a U-Net whose conditions are given as scales and shifts.
#pragma once

#include <mutex>
#include <vector>

#include "cpu/runtime/memory.h"
#include "cpu/unet/network.h"
#include "cpu/runtime/workspaces.h"

namespace cdrl::cpu {

struct UNetArguments {
  const float* x;     // (batch, channels, size, size)
  const float* rows;  // (1 or batch, row()): of each block in order scale, then shift
  bool rows_per_sample;
  float* out;  // like x, elsewhere
  int64_t batch;
};

class UNetForward {
 public:
  // `attention`: sizes of the feature maps with self-attention; the middle always has it.
  UNetForward(int image_channels, int image_size, int width, const std::vector<int>& multipliers,
              int blocks, const std::vector<int>& attention);
  UNetForward(const UNetForward&) = delete;
  UNetForward& operator=(const UNetForward&) = delete;

  // Contiguous weights, each followed by its bias, in the order of the forward pass: the stem; of
  // each block norm1, conv1, norm2, conv2 and, where channels change, the shortcut; of attention
  // norm, qkv, out; at the end norm and head. They are copied.
  void load(const std::vector<const float*>& tensors);
  // On at most `threads` threads; results don't depend on how many.
  void run(const UNetArguments& arguments, int threads);
  // What `run` takes besides weights; kept between calls.
  int64_t workspace_bytes(int64_t batch, int threads) const;
  int64_t row() const { return network_.row; }

 private:
  struct Slot {
    int level, blocks;  // the most blocks that a map in it has
    bool taken;
  };
  struct Workspace {
    Memory memory;
    std::vector<UNetBuffers::Map> slots;
    UNetBuffers buffers;
  };

  UNetTensor take(int level, int channels);
  void give_back(const UNetTensor& tensor);
  UNetTensor add_block(const UNetTensor& x, const UNetTensor& skip, int channels, int resample);
  UNetTensor add_attention(const UNetTensor& x);
  void add_layers(const std::vector<int>& widths, int blocks, const std::vector<int>& attention);
  void place_weights();
  size_t place(Workspace& workspace, int64_t size) const;
  int64_t limit() const;

  std::vector<UNetLayer> layers_;
  std::vector<Slot> slots_;
  UNetNetwork network_;
  Memory weights_;
  bool loaded_ = false;
  Workspaces<Workspace> workspaces_;
  std::mutex mutex_;
};

}  // namespace cdrl::cpu
