// Packing, memory and threads of `mlp_chain`.
#include "cpu/mlp_plan.h"

#include <algorithm>

#include "cpu/pack.h"

namespace cdrl::cpu {

namespace {

constexpr int kBlock = 16;  // features, as in tile.h

int64_t padded(int64_t width) { return (width + kBlock - 1) / kBlock * kBlock; }

void pack(AlignedFloats& to, bool half, const Source& from) {
  const int64_t count = padded(from.outs) * padded(from.ins);
  to.resize(half ? count / 2 : count);
  pack(from, to.data(), half);
}

// Memory of gradients: what is no longer needed is given out again.
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
  void give_back(int64_t at, int64_t size) { free_.emplace_back(at, size); }
  int64_t end() const { return end_; }

 private:
  std::vector<std::pair<int64_t, int64_t>> free_;
  int64_t end_;
};

}  // namespace

void AlignedFloats::resize(int64_t count) {
  memory_.assign(size_t(count) + kMlpAlign, 0.0f);
  const auto address = reinterpret_cast<uintptr_t>(memory_.data());
  first_ = memory_.data() + (64 - address % 64) % 64 / sizeof(float);
}

MlpPlan::MlpPlan(std::vector<int> widths, const std::vector<MlpShape>& shapes,
                 Activation activation, float leak, bool half)
    : widths_(std::move(widths)), packed_(shapes.size()), program_() {
  for (const MlpShape& s : shapes) {
    MlpStep step{};
    step.source = s.source, step.target = s.target;
    step.activation = s.activation, step.leak = s.leak, step.row = s.row;
    // The state's own products keep its precision.
    step.single = s.source == 0 || !half;
    step.forward = s.linear ? &step : nullptr;  // until weights are loaded: this is a map
    steps_.push_back(step);
  }
  bool thin = widths_[0] <= kThin, read = false;
  for (const MlpStep& step : steps_) {
    if (step.source != 0) continue;
    read = true;
    thin = thin && step.forward != nullptr && step.activation == Activation::kIdentity;
  }
  program_.count = int(steps_.size()), program_.buffers = int(widths_.size());
  program_.activation = activation, program_.leak = leak;
  program_.half = half, program_.thin = thin && read;
  fuse_sums();
  lay_out();
  program_.steps = steps_.data(), program_.widths = widths_.data();
  program_.values = values_.data(), program_.gradients = gradients_.data();
}

// What each result is added to: nothing, what its buffer holds, or the source of a sum just before.
void MlpPlan::fuse_sums() {
  std::vector<bool> written(widths_.size(), false);
  for (size_t i = 0; i < steps_.size(); ++i) {
    MlpStep& step = steps_[i];
    step.previous = written[size_t(step.target)] ? step.target : kNothing;
    if (i > 0 && steps_[i - 1].skipped) step.previous = steps_[i - 1].source;
    const bool first = !written[size_t(step.target)];
    written[size_t(step.target)] = true;
    step.skipped = step.forward == nullptr && first && i + 1 < steps_.size() &&
                   steps_[i + 1].forward != nullptr && steps_[i + 1].target == step.target;
  }
}

// Room for the values of all buffers, and for gradients while they are needed.
void MlpPlan::lay_out() {
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
    bool done = true;  // nothing before writes the target, so nothing will read its gradient
    for (int j = 0; j < i; ++j) done = done && steps_[size_t(j)].target != step.target;
    step.first_gradient = gradients_[source] < 0;
    if (step.first_gradient && step.forward == nullptr && done) {
      gradients_[source] = gradients_[target];  // a sum's gradient is its result's: nothing to do
      continue;
    }
    if (step.first_gradient) gradients_[source] = slots.take(width(step.source));
    if (done) slots.give_back(gradients_[target], width(step.target));
  }
  program_.room = slots.end();
  program_.cost = 0;
  for (const MlpStep& s : steps_) {
    program_.cost += width(s.target) * (s.forward != nullptr ? width(s.source) + kBlock : kBlock);
  }
}

void MlpPlan::load(const std::vector<const float*>& weights,
                   const std::vector<const float*>& biases, const float* head, float constant) {
  for (size_t i = 0; i < steps_.size(); ++i) {
    MlpStep& step = steps_[i];
    Packed& packed = packed_[i];
    if (step.forward == nullptr) continue;
    const int ins = widths_[size_t(step.source)], outs = widths_[size_t(step.target)];
    pack(packed.forward, !step.single, matrix(weights[i], outs, ins));
    pack(packed.backward, !step.single, transposed_matrix(weights[i], outs, ins));
    step.forward = packed.forward.data(), step.backward = packed.backward.data();
    if (biases[i] == nullptr) continue;
    packed.bias.resize(padded(outs));
    std::copy(biases[i], biases[i] + outs, packed.bias.data());
    step.bias = packed.bias.data();
  }
  head_.resize(padded(widths_.back()));
  std::copy(head, head + widths_.back(), head_.data());
  program_.head = head_.data(), program_.constant = constant;
}

namespace {

// What the buffers of a chunk may take: with the weights passing through, most of a second cache.
constexpr int64_t kRoomBytes = 512 << 10;
constexpr int64_t kLeastSamples = 28, kMostSamples = 128;
// Multiplications that are worth waking a thread for: about 30 µs.
constexpr int64_t kCostAThread = 1 << 20;

// Memory of this thread, kept between calls.
float* thread_room(int64_t floats) {
  thread_local AlignedFloats room;
  thread_local int64_t size = 0;
  if (floats > size) {
    room.resize(floats);
    size = floats;
  }
  return room.data();
}

}  // namespace

int64_t mlp_chain(const MlpProgram& program, const MlpCall& call, int threads) {
  if (call.batch == 0) return kNone;
  const int64_t cost = program.cost * call.batch * std::max<int64_t>(1, call.steps);
  threads = int(std::clamp<int64_t>(cost / kCostAThread, 1, std::max(1, threads)));
  const int64_t most = std::clamp<int64_t>(
      kRoomBytes / (int64_t(sizeof(float)) * program.room), kLeastSamples, kMostSamples);
  // As many chunks for each thread, of nearly equal size.
  int64_t chunks = (call.batch + most - 1) / most;
  chunks = std::min(call.batch, (chunks + threads - 1) / threads * threads);
  const auto run = kernels().mlp_chain;
  int64_t bad = kNone;
#pragma omp parallel for schedule(dynamic) reduction(min : bad) num_threads(threads) \
    if (threads > 1)
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t begin = call.batch * i / chunks, end = call.batch * (i + 1) / chunks;
    float* room = thread_room(program.room * (end - begin));
    bad = std::min(bad, run(program, call, begin, int(end - begin), room));
  }
  return bad;
}

}  // namespace cdrl::cpu
