// The energy of a residual network and its gradient with respect to the input, without autograd.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "cpu/resnet/network.h"
#include "cpu/runtime/memory.h"
#include "cpu/runtime/workspaces.h"

namespace cdrl::cpu {

struct ResNetArguments {
  const float* y;     // (batch, channels, height, width)
  const float* rows;  // (1 or batch, output channels of all blocks)
  bool rows_per_sample;
  const float* head;  // (1 or batch, channels of the last stage)
  bool head_per_sample;
  float* energies;  // (batch,)
  float* gradient;  // as y; may be null
  uint8_t* signs;   // (batch, signs()), may be null: 1 where an activation's input was positive
  int64_t batch;
};

class ResNetGradient {
 public:
  ResNetGradient(int image_channels, int width, const std::vector<int>& multipliers, int blocks,
                 int height, int width_pixels, bool bfloat16);
  ResNetGradient(const ResNetGradient&) = delete;
  ResNetGradient& operator=(const ResNetGradient&) = delete;

  // Copies contiguous weights and biases: the stem's, then for each block conv1's weight, conv2's
  // weight and bias and, where channels change, the shortcut's weight and bias.
  void load(const std::vector<const float*>& tensors);
  // Runs on at most `threads` threads; results don't depend on how many.
  void run(const ResNetArguments& arguments, int threads);
  // Bytes that `run` allocates besides the weights and keeps between calls.
  int64_t workspace_bytes(int64_t batch, int threads) const;
  int64_t signs() const { return network_.signs; }

 private:
  struct Workspace {
    Memory memory;
    ResNetBuffers buffers;
  };

  void add_stages(const std::vector<int>& multipliers, int blocks, int height, int width);
  void place_weights();
  Split split(int64_t batch, int threads) const;
  size_t place(Workspace& workspace, int64_t size) const;
  void run_group(const ResNetArguments& arguments, int64_t first, int samples,
                 ResNetBuffers& buffers) const;

  int width_;
  std::vector<ResNetStage> stages_;
  std::vector<ResNetBlock> blocks_;
  std::vector<int> limits_;  // the most samples that go through each stage together
  ResNetNetwork network_;
  Memory weights_;
  bool loaded_ = false;
  Workspaces<Workspace> workspaces_;
  std::mutex mutex_;
};

}  // namespace cdrl::cpu
