// An energy made ready for `mlp_chain`: its steps in order, weights packed, memory laid out.
#pragma once

#include <vector>

#include "cpu/mlp_chain.h"

namespace cdrl::cpu {

// Numbers that begin at a multiple of 64 bytes.
class AlignedFloats {
 public:
  void resize(int64_t count);  // to zeros
  float* data() { return first_; }

 private:
  std::vector<float> memory_;
  float* first_ = nullptr;
};

struct MlpShape {
  int source, target;
  Activation activation;
  float leak;
  bool linear;  // else a sum
  int64_t row;  // the bias's first column in a call's rows, or -1
};

class MlpPlan {
 public:
  // Sources come before their targets, no buffer is written after it was read, and every buffer but
  // the last is read.
  MlpPlan(std::vector<int> widths, const std::vector<MlpShape>& shapes, Activation activation,
          float leak, bool half);
  MlpPlan(const MlpPlan&) = delete;
  MlpPlan& operator=(const MlpPlan&) = delete;

  // Packs float32 weights (out, in), biases (out,) or null, and the head, one number a feature.
  void load(const std::vector<const float*>& weights, const std::vector<const float*>& biases,
            const float* head, float constant);
  const MlpProgram& program() const { return program_; }

 private:
  struct Packed {
    AlignedFloats forward, backward, bias;
  };

  void fuse_sums();
  void lay_out();

  std::vector<int> widths_;
  std::vector<MlpStep> steps_;
  std::vector<Packed> packed_;
  std::vector<int64_t> values_, gradients_;
  AlignedFloats head_;
  MlpProgram program_;
};

}  // namespace cdrl::cpu
