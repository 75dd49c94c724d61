// One pass of the Langevin update over part of the state; compiled once for each instruction set.
#include "cpu/normals.h"
#include "cpu/kernels.h"

namespace {

using V = Vector;

struct Coefficients {
  float drift, pull, noise_std, rescale;

  Coefficients(const cdrl::StepArguments& a, int64_t sample)
      : drift(a.drift), pull(a.pull), noise_std(a.noise_std), rescale(a.rescale) {
    if (a.table == nullptr) return;
    drift = a.table[sample];
    pull = a.table[a.batch + sample];
    noise_std = a.table[2 * a.batch + sample];
    rescale = a.table[3 * a.batch + sample];
  }
};

template <cdrl::GradType type>
struct Grad {
  using Element = uint16_t;
  static V::Float load(const Element* p) {
    return type == cdrl::GradType::kBFloat16 ? V::load_bfloat16(p) : V::load_float16(p);
  }
};
template <>
struct Grad<cdrl::GradType::kFloat32> {
  using Element = float;
  static V::Float load(const Element* p) { return V::load(p); }
};

// One register of new state. `wrong` turns to NaN where the state is not finite: 0 y is 0 else.
inline V::Float update(V::Float x, V::Float grad, const V::Float* anchor, V::Float noise,
                       const Coefficients& c, V::Float& wrong) {
  V::Float y = V::fma(V::number(c.drift), grad, x);
  if (anchor != nullptr) y = V::fnma(V::number(c.pull), V::minus(x, *anchor), y);
  y = V::times(V::fma(V::number(c.noise_std), noise, y), V::number(c.rescale));
  wrong = V::fma(y, V::number(0.0f), wrong);
  return y;
}

inline bool any_nan(V::Float value) {
  float values[kHalf];
  V::store(values, value);
  for (float v : values) {
    if (v != v) return true;
  }
  return false;
}

template <cdrl::GradType type>
class Step {
  using G = Grad<type>;
  using Element = typename G::Element;

 public:
  Step(const cdrl::StepArguments& arguments)
      : a_(arguments),
        grad_(static_cast<const Element*>(arguments.grad)),
        keys_(arguments.stream.seed) {}

  // Blocks [begin, end) of one sample with at least a group of blocks; false if it went wrong.
  bool sample(int64_t sample, int64_t begin, int64_t end) const {
    const Coefficients c(a_, sample);
    const uint64_t index = a_.stream.first_sample + uint64_t(sample);
    const int64_t stop = 4 * end < a_.elements ? 4 * end : a_.elements;
    V::Float wrong = V::number(0.0f), noise[2 * kUnroll];
    int64_t block = begin;
    for (; 4 * block + kUnroll * kGroup <= stop; block += kUnroll * kLanes) {
      sample_normals<kUnroll>(index, block, a_.stream.draw, keys_, lanes_, noise);
      const int64_t at = sample * a_.elements + 4 * block;
      for (int i = 0; i < 2 * kUnroll; ++i) store(at + i * kHalf, noise[i], c, wrong);
    }
    for (; block < end; block += kLanes) {
      sample_normals<1>(index, block, a_.stream.draw, keys_, lanes_, noise);
      const int64_t at = sample * a_.elements + 4 * block, left = stop - 4 * block;
      if (left >= kGroup) {
        for (int i = 0; i < 2; ++i) store(at + i * kHalf, noise[i], c, wrong);
      } else {
        tail(at, left, noise, c, wrong);
      }
    }
    return !any_nan(wrong);
  }

  // Samples smaller than a group: its lanes are blocks of several. Returns the first that went wrong.
  int64_t small_samples(int64_t begin, int64_t end) const {
    const int64_t blocks = cdrl::blocks_of(a_.elements), total = (end - begin) * blocks;
    SmallSamples noise(a_.stream, blocks, begin);
    int64_t bad = cdrl::cpu::kNone, sample = begin, block = 0;
    float z[kGroup];
    for (int64_t i = 0; i < total; ++i) {
      if (i % kLanes == 0) noise.next(z);
      if (!few(sample, block, z + 4 * (i % kLanes)) && sample < bad) bad = sample;
      if (++block == blocks) {
        block = 0;
        ++sample;
      }
    }
    return bad;
  }

 private:
  void store(int64_t at, V::Float noise, const Coefficients& c, V::Float& wrong) const {
    V::Float anchor;
    if (a_.anchor != nullptr) anchor = V::load(a_.anchor + at);
    const V::Float y = update(V::load(a_.x + at), G::load(grad_ + at),
                              a_.anchor != nullptr ? &anchor : nullptr, noise, c, wrong);
    V::store(a_.out + at, y);
  }

  // The same arithmetic on a copy of `count` elements, fewer than a group.
  void tail(int64_t at, int64_t count, const V::Float* noise, const Coefficients& c,
            V::Float& wrong) const {
    float x[kGroup] = {}, anchor[kGroup] = {}, y[kGroup];
    Element grad[kGroup] = {};
    std::memcpy(x, a_.x + at, size_t(count) * sizeof(float));
    std::memcpy(grad, grad_ + at, size_t(count) * sizeof(Element));
    if (a_.anchor != nullptr) std::memcpy(anchor, a_.anchor + at, size_t(count) * sizeof(float));
    for (int half = 0; half < 2; ++half) {
      const int at_half = half * kHalf;
      const V::Float near = V::load(anchor + at_half);
      V::Float unused = V::number(0.0f);
      const V::Float value =
          update(V::load(x + at_half), G::load(grad + at_half),
                 a_.anchor != nullptr ? &near : nullptr, noise[half], c, unused);
      V::store(y + at_half, value);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (y[i] - y[i] != 0.0f) wrong = V::number(y[i] - y[i]);
    }
    std::memcpy(a_.out + at, y, size_t(count) * sizeof(float));
  }

  // Up to four elements: one block of one sample.
  bool few(int64_t sample, int64_t block, const float* z) const {
    const int64_t left = a_.elements - 4 * block, count = left < 4 ? left : 4;
    const int64_t at = sample * a_.elements + 4 * block;
    const Coefficients c(a_, sample);
    bool fine = true;
    for (int64_t i = 0; i < count; ++i) {
      Element grad[kHalf] = {grad_[at + i]};
      float g[kHalf];
      V::store(g, G::load(grad));
      const float x = a_.x[at + i];
      float y = x + c.drift * g[0] + c.noise_std * z[i];
      if (a_.anchor != nullptr) y -= c.pull * (x - a_.anchor[at + i]);
      y *= c.rescale;
      fine &= y - y == 0.0f;
      a_.out[at + i] = y;
    }
    return fine;
  }

  const cdrl::StepArguments& a_;
  const Element* grad_;
  const Keys keys_;
  const Lanes lanes_;
};

template <cdrl::GradType type>
int64_t run(const cdrl::StepArguments& a, const cdrl::cpu::Part& part) {
  const Step<type> step(a);
  if (cdrl::blocks_of(a.elements) < kLanes) {
    return step.small_samples(part.sample_begin, part.sample_end);
  }
  int64_t bad = cdrl::cpu::kNone;
  for (int64_t sample = part.sample_begin; sample < part.sample_end; ++sample) {
    const bool fine = step.sample(sample, part.block_begin, part.block_end);
    if (!fine && bad == cdrl::cpu::kNone) bad = sample;
  }
  return bad;
}

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

int64_t langevin_step(const StepArguments& a, const Part& part) {
  switch (a.grad_type) {
    case GradType::kBFloat16:
      return run<GradType::kBFloat16>(a, part);
    case GradType::kFloat16:
      return run<GradType::kFloat16>(a, part);
    default:
      return run<GradType::kFloat32>(a, part);
  }
}

}  // namespace cdrl::cpu::CDRL_VARIANT
