// Packing, memory and threads of `mlp_chain`.
#include "cpu/mlp/energy.h"

#include <algorithm>
#include <stdexcept>

#include "cpu/conv/pack.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace cdrl::cpu {

namespace {

int64_t padded(int width) { return int64_t(blocks_of(width)) * kBlock; }

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

MlpPlan::MlpPlan(std::vector<int> widths, const std::vector<MlpShape>& shapes,
                 Activation activation, float leak, bool half, const MlpWeights& weights)
    : widths_(std::move(widths)), program_() {
  for (const MlpShape& s : shapes) {
    MlpStep step{};
    step.source = s.source, step.target = s.target;
    step.activation = s.activation, step.leak = s.leak, step.row = s.row;
    // The state's own products keep its precision.
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
  lay_out();
  // First without memory, to count, then with it.
  place(weights);
  place(weights);
  pack_all(weights);
  program_.steps = steps_.data(), program_.widths = widths_.data();
  program_.values = values_.data(), program_.gradients = gradients_.data();
}

void MlpPlan::check(const MlpWeights& weights) const {
  bool fits = weights.head != nullptr && weights.weights.size() == steps_.size() &&
              weights.biases.size() == steps_.size();
  for (size_t i = 0; fits && i < steps_.size(); ++i) {
    fits = steps_[i].linear == (weights.weights[i] != nullptr);
  }
  if (!fits) {
    throw std::invalid_argument("MlpPlan: every map must have a weight, and there must be a head");
  }
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
    step.skipped = !step.linear && first && i + 1 < steps_.size() && steps_[i + 1].linear &&
                   steps_[i + 1].target == step.target;
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
    if (step.first_gradient && !step.linear && done) {
      gradients_[source] = gradients_[target];  // a sum's gradient is its result's: nothing to do
      continue;
    }
    if (step.first_gradient) gradients_[source] = slots.take(width(step.source));
    if (done) slots.give_back(gradients_[target], width(step.target));
  }
  program_.room = slots.end();
  program_.cost = 0;
  for (const MlpStep& s : steps_) {
    program_.cost += width(s.target) * (s.linear ? width(s.source) + kBlock : kBlock);
  }
}

// Places what the weights are packed into; without memory it only counts, and takes that.
void MlpPlan::place(const MlpWeights& weights) {
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

void MlpPlan::pack_all(const MlpWeights& weights) {
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

namespace {

// What the buffers of a chunk may take: with the weights passing through, most of a second cache.
constexpr int64_t kRoomBytes = 512 << 10;
constexpr int64_t kLeastSamples = 28, kMostSamples = 128;
// Multiplications that are worth waking a thread for: about 30 µs.
constexpr int64_t kCostAThread = 1 << 20;

// Memory of the calls from this thread, kept between them.
float* room_of(int64_t floats) {
  thread_local Memory room;
  thread_local int64_t size = 0;
  if (floats > size) {
    size = 0;
    room = Memory();
    room = Memory(size_t(floats) * sizeof(float));
    size = floats;
  }
  return room.at<float>(0);
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
  // Here, since an error must not leave the threads' region.
  const int64_t part = program.room * ((call.batch + chunks - 1) / chunks);
  float* rooms = room_of(part * threads);
  int64_t bad = kNone;
#pragma omp parallel for schedule(dynamic) reduction(min : bad) num_threads(threads) \
    if (threads > 1)
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t begin = call.batch * i / chunks, end = call.batch * (i + 1) / chunks;
#ifdef _OPENMP
    float* room = rooms + part * omp_get_thread_num();
#else
    float* room = rooms;
#endif
    bad = std::min(bad, run(program, call, begin, int(end - begin), room));
  }
  return bad;
}

}  // namespace cdrl::cpu
