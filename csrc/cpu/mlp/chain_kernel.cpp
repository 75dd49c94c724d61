// All Langevin steps of a chunk of samples on an energy made of linear maps.
//
// The buffers of a chunk stay in cache, and the weights pass through it once for all samples. Sums
// have the same order wherever a sample is in a chunk, so its bits don't depend on the other
// samples.
#include <type_traits>

#include "cpu/mlp/chain.h"
#include "cpu/mlp/linear_map.h"
#include "cpu/noise/noise.h"
#include "cpu/simd/activation.h"

namespace cdrl::cpu::CDRL_VARIANT {
int64_t langevin_step(const StepArguments&, const Part&);
}

namespace {

using cdrl::cpu::MlpCall;
using cdrl::cpu::MlpProgram;
using cdrl::cpu::MlpStep;

// Samples [begin, begin + count) of a call, with buffers in `workspace`.
class Chunk {
 public:
  Chunk(const MlpProgram& program, const MlpCall& call, int64_t begin, int count, float* workspace)
      : p_(program),
        call_(call),
        begin_(begin),
        count_(count),
        dim_(program.widths[0]),
        plane_(int64_t(count) * kBlock),
        operand_(workspace),
        state_gradient_(workspace + program.operand * count),
        table_(state_gradient_ + int64_t(dim_) * count),
        workspace_(workspace) {}

  void gradient_once() {
    load_state();
    forward();
    if (call_.value != nullptr) value();
    if (call_.gradient == nullptr) return;
    backward();
    std::memcpy(call_.gradient + begin_ * dim_, state_gradient_,
                size_t(count_) * size_t(dim_) * sizeof(float));
  }

  int64_t chain() {
    int64_t bad = cdrl::cpu::kNone;
    for (int64_t step = 0; step < call_.steps; ++step) {
      load_state();
      forward();
      backward();
      const int64_t sample = update(step);
      if (sample == cdrl::cpu::kNone || bad != cdrl::cpu::kNone) continue;
      bad = ((int64_t(call_.draw) + step) << 31) + begin_ + sample;
    }
    return bad;
  }

 private:
  float* buffer(int i) const { return workspace_ + p_.values[i] * count_; }
  float* gradient(int i) const { return workspace_ + p_.gradients[i] * count_; }
  int blocks(int i) const { return blocks_of(p_.widths[i]); }

  // Copies the state to buffer 0, in blocks of features.
  void load_state() const {
    if (p_.thin) return;
    const float* y = call_.y + begin_ * dim_;
    float* to = buffer(0);
    for (int block = 0; block < blocks(0); ++block) {
      const int first = block * kBlock, width = dim_ - first < kBlock ? dim_ - first : kBlock;
      for (int s = 0; s < count_; ++s, to += kBlock) {
        for (int i = 0; i < kBlock; ++i) to[i] = i < width ? y[s * dim_ + first + i] : 0.0f;
      }
    }
  }

  void store_state_gradient() const {
    const float* from = gradient(0);
    for (int block = 0; block < blocks(0); ++block) {
      const int first = block * kBlock, width = dim_ - first < kBlock ? dim_ - first : kBlock;
      for (int s = 0; s < count_; ++s, from += kBlock) {
        for (int i = 0; i < width; ++i) state_gradient_[s * dim_ + first + i] = from[i];
      }
    }
  }

  void forward() const {
    for (int i = 0; i < p_.count; ++i) {
      const MlpStep& step = p_.steps[i];
      if (step.skipped) continue;
      if (!step.linear) {
        add(buffer(step.target), buffer(step.source), blocks(step.target),
            step.previous == cdrl::cpu::kNothing);
      } else if (p_.thin && step.source == 0) {
        thin_forward(step);
      } else if (step.single || !p_.half) {
        map_forward<Float32>(step);
      } else {
        map_forward<BFloat16>(step);
      }
    }
  }

  void backward() const {
    const int last = p_.buffers - 1;
    const float* x = buffer(last);
    float* to = gradient(last);
    with_activation(p_.activation, [&](auto activated) {
      const V::Float leak = V::number(p_.leak);
      each(blocks(last), [&](int block, int64_t at, int i) {
        const V::Float head = V::load(p_.head + block * kBlock + i);
        V::store(to + at, V::times(head, activated.slope(V::load(x + at), leak)));
      });
    });
    for (int i = p_.count - 1; i >= 0; --i) {
      const MlpStep& step = p_.steps[i];
      if (!step.linear) {
        const float* from = gradient(step.target);
        float* sum = gradient(step.source);
        if (sum != from) add(sum, from, blocks(step.source), step.first_gradient);
      } else if (p_.thin && step.source == 0) {
        thin_backward(step);
      } else if (step.single || !p_.half) {
        map_backward<Float32>(step);
      } else {
        map_backward<BFloat16>(step);
      }
    }
    if (!p_.thin) store_state_gradient();
  }

  // Writes head · activation(last buffer) + constant of each sample.
  void value() const {
    const int last = p_.buffers - 1;
    with_activation(p_.activation, [&](auto activated) {
      const V::Float leak = V::number(p_.leak);
      for (int s = 0; s < count_; ++s) {
        V::Float sum = V::number(0.0f);
        for (int block = 0; block < blocks(last); ++block) {
          const float* x = buffer(last) + block * plane_ + s * kBlock;
          const float* head = p_.head + block * kBlock;
          for (int i = 0; i < kBlock; i += kWidth) {
            sum = V::fma(V::load(head + i), activated.value(V::load(x + i), leak), sum);
          }
        }
        call_.value[begin_ + s] = total(sum) + p_.constant;
      }
    });
  }

  // Does one Langevin step. Returns the first sample of the chunk that became non-finite, or kNone.
  int64_t update(int64_t step) const {
    const bool last = step + 1 == call_.steps;
    if (call_.table != nullptr) {
      for (int row = 0; row < 4; ++row) {
        const float* from = call_.table + row * call_.batch + begin_;
        const bool used = row < 3 || last;  // only the last step rescales
        for (int s = 0; s < count_; ++s) table_[row * count_ + s] = used ? from[s] : 1.0f;
      }
    }
    float* y = call_.y + begin_ * dim_;
    cdrl::StepArguments a{};
    a.out = y, a.x = y, a.grad = state_gradient_;
    a.anchor = call_.anchor == nullptr ? nullptr : call_.anchor + begin_ * dim_;
    a.table = call_.table == nullptr ? nullptr : table_;
    a.batch = count_, a.elements = dim_;
    a.stream = {call_.seed, call_.first_sample + uint64_t(begin_), nullptr,
                call_.draw + uint32_t(step)};
    a.drift = call_.drift, a.pull = call_.pull, a.noise_std = call_.noise_std;
    a.rescale = last ? call_.rescale : 1.0f;
    a.grad_type = cdrl::GradType::kFloat32;
    return cdrl::cpu::CDRL_VARIANT::langevin_step(a, {0, count_, 0, cdrl::fours_of(dim_)});
  }

  template <class Type>
  void map_forward(const MlpStep& step) const {
    using Element = typename Type::Element;
    const Element* in = activated_operand<Type>(step);
    const int outs = blocks(step.target);
    float* out = buffer(step.target);
    const float* previous = step.previous == cdrl::cpu::kNothing ? nullptr : buffer(step.previous);
    linear_map<Type>(in, blocks(step.source), static_cast<const Element*>(step.forward), outs,
                     count_, [&](int block, int s, const float* sums) {
                       float padded[kBlock];
                       const float* bias = bias_of(step, block, s, padded);
                       const int64_t at = block * plane_ + s * kBlock;
                       for (int i = 0; i < kBlock; i += kWidth) {
                         V::Float x = V::load(sums + i);
                         if (bias != nullptr) x = V::plus(x, V::load(bias + i));
                         if (previous != nullptr) x = V::plus(x, V::load(previous + at + i));
                         V::store(out + at + i, x);
                       }
                     });
  }

  template <class Type>
  void map_backward(const MlpStep& step) const {
    using Element = typename Type::Element;
    const Element* in = operand<Type>(gradient(step.target), blocks(step.target),
                                      Activated<cdrl::Activation::kIdentity>(), 0.0f);
    const float* x = buffer(step.source);
    float* out = gradient(step.source);
    const bool first = step.first_gradient;
    with_activation(step.activation, [&](auto activated) {
      const V::Float leak = V::number(step.leak);
      linear_map<Type>(in, blocks(step.target), static_cast<const Element*>(step.backward),
                       blocks(step.source), count_, [&](int block, int s, const float* sums) {
                         const int64_t at = block * plane_ + s * kBlock;
                         for (int i = 0; i < kBlock; i += kWidth) {
                           const V::Float slope = activated.slope(V::load(x + at + i), leak);
                           V::Float g = V::times(V::load(sums + i), slope);
                           if (!first) g = V::plus(g, V::load(out + at + i));
                           V::store(out + at + i, g);
                         }
                       });
    });
  }

  template <class Type>
  const typename Type::Element* activated_operand(const MlpStep& step) const {
    const typename Type::Element* in = nullptr;
    with_activation(step.activation, [&](auto activated) {
      in = operand<Type>(buffer(step.source), blocks(step.source), activated, step.leak);
    });
    return in;
  }

  // Returns activation(x) in the precision of a product, or x itself where that is the same.
  template <class Type, class Act>
  const typename Type::Element* operand(const float* x, int blocks, Act, float leak) const {
    using Element = typename Type::Element;
    if constexpr (Type::kDepth == 1 && Act::kIsIdentity) {
      return x;
    } else {
      Element* to = reinterpret_cast<Element*>(operand_);
      const V::Float slope = V::number(leak);
      each(blocks,
           [&](int, int64_t at, int) { store_as(to + at, Act::value(V::load(x + at), slope)); });
      return to;
    }
  }

  // Calls function(std::integral_constant of the number of features of a thin state), so that loops
  // over features unroll.
  template <class Function>
  void with_dim(Function function) const {
    switch (dim_) {
      case 1:
        return function(std::integral_constant<int, 1>());
      case 2:
        return function(std::integral_constant<int, 2>());
      case 3:
        return function(std::integral_constant<int, 3>());
      default:
        return function(std::integral_constant<int, cdrl::cpu::kThin>());
    }
  }

  // A map from a thin state: its features times the first rows of each block of packed weights.
  void thin_forward(const MlpStep& step) const {
    const float* previous = step.previous == cdrl::cpu::kNothing ? nullptr : buffer(step.previous);
    float* out = buffer(step.target);
    with_dim([&](auto constant) {
      constexpr int dim = decltype(constant)::value;
      for (int block = 0; block < blocks(step.target); ++block) {
        const float* w = static_cast<const float*>(step.forward) + block * kBlock * kBlock;
        const float* y = call_.y + begin_ * dim;
        for (int s = 0; s < count_; ++s, y += dim) {
          float padded[kBlock];
          const float* bias = bias_of(step, block, s, padded);
          const int64_t at = block * plane_ + s * kBlock;
          for (int i = 0; i < kBlock; i += kWidth) {
            V::Float x = bias != nullptr ? V::load(bias + i) : V::number(0.0f);
#pragma GCC unroll 4
            for (int d = 0; d < dim; ++d) {
              x = V::fma(V::number(y[d]), V::load(w + d * kBlock + i), x);
            }
            if (previous != nullptr) x = V::plus(x, V::load(previous + at + i));
            V::store(out + at + i, x);
          }
        }
      }
    });
  }

  void thin_backward(const MlpStep& step) const {
    const float* weights = static_cast<const float*>(step.forward);
    const int outs = blocks(step.target);
    with_dim([&](auto constant) {
      constexpr int dim = decltype(constant)::value;
      const float* g = gradient(step.target);
      float* to = state_gradient_;
      for (int s = 0; s < count_; ++s, g += kBlock, to += dim) {
        V::Float sums[dim];
        for (int d = 0; d < dim; ++d) sums[d] = V::number(0.0f);
        for (int block = 0; block < outs; ++block) {
          const float* w = weights + block * kBlock * kBlock;
          for (int i = 0; i < kBlock; i += kWidth) {
            const V::Float value = V::load(g + block * plane_ + i);
#pragma GCC unroll 4
            for (int d = 0; d < dim; ++d) {
              sums[d] = V::fma(value, V::load(w + d * kBlock + i), sums[d]);
            }
          }
        }
        for (int d = 0; d < dim; ++d) {
          to[d] = total(sums[d]) + (step.first_gradient ? 0.0f : to[d]);
        }
      }
    });
  }

  // Returns the 16 biases of a block, or null. Copies them to `padded` where the block is
  // incomplete.
  const float* bias_of(const MlpStep& step, int block, int sample, float* padded) const {
    if (step.row < 0) return step.bias == nullptr ? nullptr : step.bias + block * kBlock;
    const int first = block * kBlock, left = p_.widths[step.target] - first;
    const float* row = call_.rows + (begin_ + sample) * call_.rows_stride + step.row + first;
    if (left >= kBlock) return row;
    for (int i = 0; i < kBlock; ++i) padded[i] = i < left ? row[i] : 0.0f;
    return padded;
  }

  void add(float* to, const float* from, int blocks, bool assign) const {
    each(blocks, [&](int, int64_t at, int) {
      const V::Float x = V::load(from + at);
      V::store(to + at, assign ? x : V::plus(x, V::load(to + at)));
    });
  }

  // Calls function(block, offset, index of the first feature in its block) for every register of a
  // buffer.
  template <class Function>
  void each(int blocks, Function function) const {
    for (int block = 0; block < blocks; ++block) {
      for (int64_t at = block * plane_; at < (block + 1) * plane_; at += kBlock) {
        for (int i = 0; i < kBlock; i += kWidth) function(block, at + i, i);
      }
    }
  }

  const MlpProgram& p_;
  const MlpCall& call_;
  const int64_t begin_;
  const int count_, dim_;
  const int64_t plane_;    // floats of one block of features
  float* operand_;         // input of a product
  float* state_gradient_;  // (count, dim)
  float* table_;           // (4, count)
  float* workspace_;
};

}  // namespace

namespace cdrl::cpu::CDRL_VARIANT {

int64_t mlp_chain(const MlpProgram& program, const MlpCall& call, int64_t begin, int count,
                  float* workspace) {
  Chunk chunk(program, call, begin, count, workspace);
  if (call.value == nullptr && call.gradient == nullptr) return chunk.chain();
  chunk.gradient_once();
  return kNone;
}

}  // namespace cdrl::cpu::CDRL_VARIANT
