// An energy made ready for `mlp_chain`: its steps in order, weights packed, memory laid out.
#pragma once

#include <vector>

#include "cpu/runtime/memory.h"
#include "cpu/mlp/chain.h"

namespace cdrl::cpu {

struct MlpShape {
  int source, target;
  Activation activation;
  float leak;
  bool linear;  // else a sum
  int64_t row;  // the bias's first column in a call's rows, or -1
};

// Contiguous numbers of each step, which are copied: weights (out, in), null for a sum; biases
// (out,), null where there is none; and the head, one number a feature.
struct MlpWeights {
  std::vector<const float*> weights, biases;
  const float* head;
  float constant;
};

class MlpPlan {
 public:
  // Sources come before their targets, no buffer is written after it was read, and every buffer but
  // the last is read.
  MlpPlan(std::vector<int> widths, const std::vector<MlpShape>& shapes, Activation activation,
          float leak, bool half, const MlpWeights& weights);
  MlpPlan(const MlpPlan&) = delete;
  MlpPlan& operator=(const MlpPlan&) = delete;

  const MlpProgram& program() const { return program_; }

 private:
  void check(const MlpWeights& weights) const;
  void fuse_sums();
  void lay_out();
  void place(const MlpWeights& weights);
  void pack_all(const MlpWeights& weights);

  std::vector<int> widths_;
  std::vector<MlpStep> steps_;
  std::vector<int64_t> values_, gradients_;
  Memory memory_;
  MlpProgram program_;
};

}  // namespace cdrl::cpu
