#include "cpu/mlp/energy.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/conv/pack.h"

namespace cdrl::cpu {

namespace {

int64_t padded(int width) { return int64_t(blocks_of(width)) * kBlock; }

// Offsets of gradients: memory of one that is no longer needed is reused.
class Slots {
 public:
  explicit Slots(int64_t begin) : end_(begin) {}

  int64_t take(int64_t size) {
    for (auto slot = free_.begin(); slot != free_.end(); ++slot) {
      if (slot->second == size) {
        const int64_t at = slot->first;
        free_.erase(slot);
        return at;
      }
    }
    end_ += size;
    return end_ - size;
  }
  void release(int64_t at, int64_t size) { free_.emplace_back(at, size); }
  int64_t end() const { return end_; }

 private:
  std::vector<std::pair<int64_t, int64_t>> free_;
  int64_t end_;
};

}  // namespace

MlpEnergy::MlpEnergy(std::vector<int> widths, const std::vector<MlpShape>& shapes,
                     Activation activation, float leak, bool half, const MlpWeights& weights)
    : widths_(std::move(widths)), program_() {
  for (const MlpShape& s : shapes) {
    MlpStep step{};
    step.source = s.source, step.target = s.target;
    step.activation = s.activation, step.leak = s.leak, step.row = s.row;
    // The state is float32 and its products stay so.
    step.single = s.source == 0 || !half;
    step.linear = s.linear;
    steps_.push_back(step);
  }
  check(weights);
  bool thin = widths_[0] <= kThin, read = false;
  for (const MlpStep& step : steps_) {
    if (step.source != 0) continue;
    read = true;
    thin = thin && step.linear && step.activation == Activation::kIdentity;
  }
  program_.count = int(steps_.size()), program_.buffers = int(widths_.size());
  program_.activation = activation, program_.leak = leak;
  program_.half = half, program_.thin = thin && read;
  fuse_sums();
  place_buffers();
  // The first call counts bytes and allocates them, the second places.
  place_weights(weights);
  place_weights(weights);
  pack_weights(weights);
  program_.steps = steps_.data(), program_.widths = widths_.data();
  program_.values = values_.data(), program_.gradients = gradients_.data();
}

void MlpEnergy::check(const MlpWeights& weights) const {
  bool fits = weights.head != nullptr && weights.weights.size() == steps_.size() &&
              weights.biases.size() == steps_.size();
  for (size_t i = 0; fits && i < steps_.size(); ++i) {
    fits = steps_[i].linear == (weights.weights[i] != nullptr);
  }
  if (!fits) {
    throw std::invalid_argument(
        "mlp_chain: every map must have a weight, and there must be a head");
  }
}

// Chooses what each result is added to: nothing, the buffer's content, or the source of a sum that
// comes just before and is then skipped.
void MlpEnergy::fuse_sums() {
  std::vector<bool> written(widths_.size(), false);
  for (size_t i = 0; i < steps_.size(); ++i) {
    MlpStep& step = steps_[i];
    step.previous = written[size_t(step.target)] ? step.target : kNothing;
    if (i > 0 && steps_[i - 1].skipped) step.previous = steps_[i - 1].source;
    const bool first = !written[size_t(step.target)];
    written[size_t(step.target)] = true;
    step.skipped = !step.linear && first && i + 1 < steps_.size() && steps_[i + 1].linear &&
                   steps_[i + 1].target == step.target;
  }
}

// Places the values of all buffers, and gradients for as long as they are needed, in a workspace.
void MlpEnergy::place_buffers() {
  const auto width = [&](int i) { return padded(widths_[size_t(i)]); };
  int64_t at = 0;
  for (const MlpStep& s : steps_) at = std::max({at, width(s.source), width(s.target)});
  program_.operand = at;
  at += padded(widths_[0] + 4);  // the state's gradient and four coefficients
  for (int i = 0; i < program_.buffers; ++i) {
    values_.push_back(at);
    at += width(i);
  }
  Slots slots(at);
  gradients_.assign(widths_.size(), -1);
  gradients_.back() = slots.take(width(program_.buffers - 1));
  for (int i = program_.count - 1; i >= 0; --i) {
    MlpStep& step = steps_[size_t(i)];
    const size_t source = size_t(step.source), target = size_t(step.target);
    bool done = true;  // no earlier step writes the target, so no other step reads its gradient
    for (int j = 0; j < i; ++j) done = done && steps_[size_t(j)].target != step.target;
    step.first_gradient = gradients_[source] < 0;
    if (step.first_gradient && !step.linear && done) {
      gradients_[source] = gradients_[target];  // the gradient of a sum's source is the target's
      continue;
    }
    if (step.first_gradient) gradients_[source] = slots.take(width(step.source));
    if (done) slots.release(gradients_[target], width(step.target));
  }
  program_.workspace = slots.end();
  program_.cost = 0;
  for (const MlpStep& s : steps_) {
    program_.cost += width(s.target) * (s.linear ? width(s.source) + kBlock : kBlock);
  }
}

// Places the packed weights in memory_; if that is empty, allocates it instead.
void MlpEnergy::place_weights(const MlpWeights& weights) {
  Pieces pieces(memory_);
  const bool counting = memory_.at<char>(0) == nullptr;
  for (size_t i = 0; i < steps_.size(); ++i) {
    MlpStep& step = steps_[i];
    if (!step.linear) continue;
    const int64_t ins = padded(widths_[size_t(step.source)]);
    const int64_t outs = padded(widths_[size_t(step.target)]);
    const int64_t bytes = ins * outs * (step.single ? 4 : 2);
    step.forward = pieces.take<char>(bytes), step.backward = pieces.take<char>(bytes);
    step.bias = weights.biases[i] == nullptr ? nullptr : pieces.take<float>(outs);
  }
  program_.head = pieces.take<float>(padded(widths_.back()));
  if (counting) memory_ = Memory(pieces.bytes());
}

void MlpEnergy::pack_weights(const MlpWeights& weights) {
  for (size_t i = 0; i < steps_.size(); ++i) {
    const MlpStep& step = steps_[i];
    if (!step.linear) continue;
    const int ins = widths_[size_t(step.source)], outs = widths_[size_t(step.target)];
    pack(matrix(weights.weights[i], outs, ins), step.forward, !step.single);
    pack(transposed_matrix(weights.weights[i], outs, ins), step.backward, !step.single);
    if (step.bias != nullptr) copy(weights.biases[i], step.bias, outs);
  }
  copy(weights.head, program_.head, widths_.back());
  program_.constant = weights.constant;
}

}  // namespace cdrl::cpu
