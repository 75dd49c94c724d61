// The Langevin update of a part of the state in one pass over memory.
#include "cpu/noise/noise.h"
#include "cpu/noise/normals.h"

namespace {

using V = Vector;

struct Coefficients {
  V::Float drift, pull, noise_std, rescale;

  Coefficients(float drift, float pull, float noise_std, float rescale)
      : drift(V::number(drift)),
        pull(V::number(pull)),
        noise_std(V::number(noise_std)),
        rescale(V::number(rescale)) {}

  static Coefficients of(const cdrl::StepArguments& a, int64_t sample) {
    if (a.table == nullptr) return {a.drift, a.pull, a.noise_std, a.rescale};
    const float* c = a.table + sample;
    return {c[0], c[a.batch], c[2 * a.batch], c[3 * a.batch]};
  }

  // Reads the coefficients of each element from four rows.
  Coefficients(const float* rows, int64_t stride)
      : drift(V::load(rows)),
        pull(V::load(rows + stride)),
        noise_std(V::load(rows + 2 * stride)),
        rescale(V::load(rows + 3 * stride)) {}
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

// Returns one register of the new state. `non_finite` becomes NaN where the state is not finite: 0
// y is NaN for an infinite or NaN y, and 0 for a finite one.
inline V::Float update(V::Float x, V::Float grad, const V::Float* anchor, V::Float noise,
                       const Coefficients& c, V::Float& non_finite) {
  V::Float y = V::fma(c.drift, grad, x);
  if (anchor != nullptr) y = V::fnma(c.pull, V::minus(x, *anchor), y);
  y = V::times(V::fma(c.noise_std, noise, y), c.rescale);
  non_finite = V::fma(y, V::number(0.0f), non_finite);
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

  // Updates blocks [begin, end) of one sample of at least a group of blocks. Returns whether the
  // result is finite.
  bool sample(int64_t sample, int64_t begin, int64_t end) const {
    const Coefficients c = Coefficients::of(a_, sample);
    const uint64_t index = a_.stream.first_sample + uint64_t(sample);
    const int64_t stop = 4 * end < a_.elements ? 4 * end : a_.elements;
    V::Float non_finite = V::number(0.0f), noise[2 * kUnroll];
    int64_t block = begin;
    for (; 4 * block + kUnroll * kGroup <= stop; block += kUnroll * kLanes) {
      sample_normals<kUnroll>(index, block, a_.stream.draw, keys_, lanes_, noise);
      const int64_t at = sample * a_.elements + 4 * block;
      for (int i = 0; i < 2 * kUnroll; ++i) store(at + i * kHalf, noise[i], c, non_finite);
    }
    for (; block < end; block += kLanes) {
      sample_normals<1>(index, block, a_.stream.draw, keys_, lanes_, noise);
      const int64_t at = sample * a_.elements + 4 * block, left = stop - 4 * block;
      if (left >= kGroup) {
        for (int i = 0; i < 2; ++i) store(at + i * kHalf, noise[i], c, non_finite);
      } else {
        tail(at, left, noise, c, non_finite);
      }
    }
    return !any_nan(non_finite);
  }

  // Updates samples smaller than a group, many at a time. Returns the first that became non-finite.
  int64_t small_samples(int64_t begin, int64_t end) const {
    SmallSamples noise(a_.stream, a_.elements, begin);
    float z[SmallSamples::kBufferSize], rows[4 * SmallSamples::kBufferSize] = {};
    int64_t bad = cdrl::cpu::kNone, at = begin * a_.elements;
    for (int64_t left = (end - begin) * a_.elements; left > 0;) {
      const int64_t available = noise.next(z), count = available < left ? available : left;
      if (a_.table != nullptr) expand(at, count, rows);
      const bool fine = run(at, count, z, a_.table != nullptr ? rows : nullptr);
      for (int64_t i = at; !fine && bad == cdrl::cpu::kNone && i < at + count; ++i) {
        if (a_.out[i] - a_.out[i] != 0.0f) bad = i / a_.elements;
      }
      at += count;
      left -= count;
    }
    return bad;
  }

 private:
  void store(int64_t at, V::Float noise, const Coefficients& c, V::Float& non_finite) const {
    V::Float anchor;
    if (a_.anchor != nullptr) anchor = V::load(a_.anchor + at);
    const V::Float y = update(V::load(a_.x + at), G::load(grad_ + at),
                              a_.anchor != nullptr ? &anchor : nullptr, noise, c, non_finite);
    V::store(a_.out + at, y);
  }

  // Updates `count` elements, fewer than a group, with the same arithmetic on a padded copy.
  void tail(int64_t at, int64_t count, const V::Float* noise, const Coefficients& c,
            V::Float& non_finite) const {
    float x[kGroup] = {}, anchor[kGroup] = {}, y[kGroup];
    Element grad[kGroup] = {};
    std::memcpy(x, a_.x + at, size_t(count) * sizeof(float));
    std::memcpy(grad, grad_ + at, size_t(count) * sizeof(Element));
    if (a_.anchor != nullptr) std::memcpy(anchor, a_.anchor + at, size_t(count) * sizeof(float));
    for (int half = 0; half < 2; ++half) {
      const int at_half = half * kHalf;
      const V::Float anchor_half = V::load(anchor + at_half);
      V::Float unused = V::number(0.0f);
      const V::Float value =
          update(V::load(x + at_half), G::load(grad + at_half),
                 a_.anchor != nullptr ? &anchor_half : nullptr, noise[half], c, unused);
      V::store(y + at_half, value);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (y[i] - y[i] != 0.0f) non_finite = V::number(y[i] - y[i]);
    }
    std::memcpy(a_.out + at, y, size_t(count) * sizeof(float));
  }

  // Updates elements of several samples, with coefficients per element from `rows` unless it is
  // null. Returns whether all results are finite.
  bool run(int64_t at, int64_t count, const float* z, const float* rows) const {
    Coefficients c = Coefficients::of(a_, 0);
    V::Float non_finite = V::number(0.0f);
    for (int64_t i = 0; i < count; i += kHalf) {
      if (rows != nullptr) c = Coefficients(rows + i, SmallSamples::kBufferSize);
      const V::Float noise[2] = {V::load(z + i), V::number(0.0f)};
      if (i + kHalf <= count) {
        store(at + i, noise[0], c, non_finite);
      } else {
        tail(at + i, count - i, noise, c, non_finite);
      }
    }
    return !any_nan(non_finite);
  }

  // Expands the table's four rows from one coefficient per sample to one per element.
  void expand(int64_t at, int64_t count, float* rows) const {
    for (int row = 0; row < 4; ++row) {
      const float* table = a_.table + row * a_.batch;
      float* to = rows + row * SmallSamples::kBufferSize;
      int64_t sample = at / a_.elements, left = a_.elements - at % a_.elements;
      for (int64_t i = 0; i < count; ++i) {
        to[i] = table[sample];
        if (--left == 0) {
          left = a_.elements;
          ++sample;
        }
      }
    }
  }

  const cdrl::StepArguments& a_;
  const Element* grad_;
  const Keys keys_;
  const Lanes lanes_;
};

template <cdrl::GradType type>
int64_t run(const cdrl::StepArguments& a, const cdrl::cpu::Part& part) {
  const Step<type> step(a);
  if (cdrl::fours_of(a.elements) < kLanes) {
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
