// The forward pass of a U-Net. Level and label enter as a scale and a shift per channel and block,
// which the caller computes.
#pragma once

#include <mutex>
#include <vector>

#include "cpu/runtime/memory.h"
#include "cpu/runtime/workspaces.h"
#include "cpu/unet/network.h"

namespace cdrl::cpu {

struct UNetArguments {
  const float* x;     // (batch, channels, size, size)
  const float* rows;  // (1 or batch, row()): scale, then shift of each block in order
  bool rows_per_sample;
  float* out;  // as x, must not overlap it
  int64_t batch;
};

class UNetForward {
 public:
  // `attention` lists the sizes of the feature maps with self-attention; the middle block always
  // has it.
  UNetForward(int image_channels, int image_size, int width, const std::vector<int>& multipliers,
              int blocks, const std::vector<int>& attention);
  UNetForward(const UNetForward&) = delete;
  UNetForward& operator=(const UNetForward&) = delete;

  // Copies contiguous weights, each followed by its bias, in the order of the forward pass: the
  // stem; norm1, conv1, norm2, conv2 and, where channels change, the shortcut of each block; norm,
  // qkv, out of each attention; the final norm and the head.
  void load(const std::vector<const float*>& tensors);
  // Runs on at most `threads` threads; results don't depend on how many.
  void run(const UNetArguments& arguments, int threads);
  // Bytes that `run` allocates besides the weights and keeps between calls.
  int64_t workspace_bytes(int64_t batch, int threads) const;
  int64_t row() const { return network_.row; }

 private:
  struct Slot {
    int level, blocks;  // blocks: of the largest map that it stores
    bool taken;
  };
  struct Workspace {
    Memory memory;
    std::vector<UNetBuffers::Map> slots;
    UNetBuffers buffers;
  };

  UNetTensor take(int level, int channels);
  void release(const UNetTensor& tensor);
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
