// `MlpEnergy`: an energy compiled for `mlp_chain`, with its steps in order, weights packed and
// buffers placed.
#pragma once

#include <vector>

#include "cpu/mlp/chain.h"
#include "cpu/runtime/memory.h"

namespace cdrl::cpu {

// A step before packing.
struct MlpShape {
  int source, target;
  Activation activation;
  float leak;
  bool linear;  // a map; else a sum
  int64_t row;  // first column of the bias in a call's rows, or -1
};

// Contiguous tensors of each step: weights (out, in), null for a sum; biases (out,), null without
// one; and the head, one float per feature. MlpEnergy copies them.
struct MlpWeights {
  std::vector<const float*> weights, biases;
  const float* head;
  float constant;
};

class MlpEnergy {
 public:
  // Requires that sources come before their targets, that no buffer is written after it was read,
  // and that every buffer but the last is read.
  MlpEnergy(std::vector<int> widths, const std::vector<MlpShape>& shapes, Activation activation,
            float leak, bool half, const MlpWeights& weights);
  MlpEnergy(const MlpEnergy&) = delete;
  MlpEnergy& operator=(const MlpEnergy&) = delete;

  const MlpProgram& program() const { return program_; }

 private:
  void check(const MlpWeights& weights) const;
  void fuse_sums();
  void place_buffers();
  void place_weights(const MlpWeights& weights);
  void pack_weights(const MlpWeights& weights);

  std::vector<int> widths_;
  std::vector<MlpStep> steps_;
  std::vector<int64_t> values_, gradients_;
  Memory memory_;
  MlpProgram program_;
};

}  // namespace cdrl::cpu
