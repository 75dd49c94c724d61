// The noise stream in vector registers: groups of `Vector::kLanes` blocks of four elements.
// common/philox.h is the same for one block.
#pragma once

#include "common/arguments.h"
#include "common/philox.h"
#include "cpu/simd/vector.h"

namespace {

constexpr int kLanes = Vector::kLanes;      // blocks per group
constexpr int kGroup = 4 * Vector::kLanes;  // elements per group
constexpr int kHalf = 2 * Vector::kLanes;   // elements per register, half a group
constexpr int kUnroll = 4;                  // groups computed together

// Lane of block i of a group. In this order, interleaving cosines and sines within 128 bits gives
// the elements in order, without another shuffle.
constexpr int lane_of(int i) { return i < kLanes / 2 ? 2 * i : 2 * (i - kLanes / 2) + 1; }

struct Lanes {
  Vector::Wide offsets;  // each lane's block number within a group

  Lanes() {
    uint64_t order[kLanes];
    for (int i = 0; i < kLanes; ++i) order[lane_of(i)] = uint64_t(i);
    offsets = Vector::load_wide(order);
  }
};

inline Vector::Float uniforms(Vector::Word bits) {
  return Vector::fma(Vector::from_unsigned(bits), Vector::number(0x1p-32f),
                     Vector::number(0x1p-33f));
}

inline Vector::Float minus_two_logs(Vector::Float u) {
  using V = Vector;
  const V::Word origin = V::word(cdrl::kThreeQuarters);
  const V::Word shifted = V::subtract(V::bits(u), origin);
  const V::Float exponent = V::from_signed(V::exponent(shifted));
  const V::Word mantissa = V::add(V::both(shifted, V::word(0x7FFFFFu)), origin);
  const V::Float f = V::minus(V::floats(mantissa), V::number(1.0f));
  V::Float p = V::number(cdrl::log_term(5));
  for (int i = 4; i >= 0; --i) p = V::fma(p, f, V::number(cdrl::log_term(i)));
  p = V::fma(V::fma(p, f, V::number(1.0f)), f, V::number(-2.0f));
  return V::fma(p, f, V::times(exponent, V::number(cdrl::kMinusTwoLog2)));
}

// As cdrl::box_muller: n0 has the cosines, n1 the sines.
inline void box_mullers(Vector::Word first, Vector::Word second, Vector::Float& n0,
                        Vector::Float& n1) {
  using V = Vector;
  const V::Float v = uniforms(second);
  const V::Float shifted = V::fma(v, V::number(2.0f), V::number(cdrl::kRound));
  const V::Float turns = V::minus(shifted, V::number(cdrl::kRound));
  const V::Float r = V::fnma(turns, V::number(0.5f), v);
  const V::Float rr = V::times(r, r);
  V::Float s = V::number(cdrl::sin_term(4)), c = V::number(cdrl::cos_term(3));
  for (int i = 3; i >= 0; --i) s = V::fma(s, rr, V::number(cdrl::sin_term(i)));
  for (int i = 2; i >= 0; --i) c = V::fma(c, rr, V::number(cdrl::cos_term(i)));
  V::Float radius = V::root(minus_two_logs(uniforms(first)));
  radius = V::flip(radius, V::to_sign(V::bits(shifted)));
  n0 = V::times(radius, V::fma(c, rr, V::number(1.0f)));
  n1 = V::times(radius, V::times(s, r));
}

// Both keys of each round. Computed once per call, so that the loop reads them as memory operands.
struct Keys {
  uint64_t first[cdrl::kRounds], second[cdrl::kRounds];

  explicit Keys(uint64_t seed) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < cdrl::kRounds; ++round) {
      first[round] = k0;
      second[round] = k1;
      k0 += cdrl::kWeyl0;
      k1 += cdrl::kWeyl1;
    }
  }
};

// The counters of a group: the block and the sample of each lane.
struct Counters {
  Vector::Wide block, sample_low, sample_high;
};

// Computes the elements of `groups` groups, two registers per group; lanes are in the order of
// `lane_of`. Several groups at once hide the latency of the rounds.
template <int groups>
inline void group_normals(const Counters* counters, uint32_t draw, const Keys& keys,
                          Vector::Float* out) {
  using V = Vector;
  const V::Wide m0 = V::wide(cdrl::kMultiplier0), m1 = V::wide(cdrl::kMultiplier1);
  // The upper half of a lane is arbitrary, because `multiply` reads the lower half alone.
  V::Wide c0[groups], c1[groups], c2[groups], c3[groups];
  for (int i = 0; i < groups; ++i) {
    c0[i] = counters[i].block, c1[i] = V::wide(draw);
    c2[i] = counters[i].sample_low, c3[i] = counters[i].sample_high;
  }
#pragma GCC unroll 10
  for (int round = 0; round + 1 < cdrl::kRounds; ++round) {
    const V::Wide k0 = V::wide(keys.first[round]), k1 = V::wide(keys.second[round]);
#pragma GCC unroll 4
    for (int i = 0; i < groups; ++i) {
      const V::Wide p0 = V::multiply(c0[i], m0), p1 = V::multiply(c2[i], m1);
      c0[i] = V::xor3(V::high(p1), c1[i], k0);
      c2[i] = V::xor3(V::high(p0), c3[i], k1);
      c1[i] = p1;
      c3[i] = p0;
    }
  }
  // The last round computes two of the four uint32 in the upper halves, where `interleave` takes
  // them.
  const V::Wide k0 = V::wide(keys.first[cdrl::kRounds - 1]);
  const V::Wide k1 = V::wide(keys.second[cdrl::kRounds - 1] << 32);
#pragma GCC unroll 4
  for (int i = 0; i < groups; ++i) {
    const V::Wide p0 = V::multiply(c0[i], m0), p1 = V::multiply(c2[i], m1);
    const V::Wide lower = V::xor3(V::high(p1), c1[i], k0);
    const V::Wide upper = V::xor3(p0, V::up(c3[i]), k1);
    V::Float cosine, sine;
    box_mullers(V::interleave(lower, upper), V::interleave(p1, V::up(p0)), cosine, sine);
    out[2 * i] = V::unpack_low(cosine, sine);
    out[2 * i + 1] = V::unpack_high(cosine, sine);
  }
}

// Computes groups of consecutive blocks of one sample, beginning at `block`.
template <int groups>
inline void sample_normals(uint64_t sample, int64_t block, uint32_t draw, const Keys& keys,
                           const Lanes& lanes, Vector::Float* out) {
  Counters counters[groups];
  for (int i = 0; i < groups; ++i) {
    const auto first = Vector::wide(uint64_t(block + i * kLanes));
    counters[i] = {Vector::add_wide(first, lanes.offsets), Vector::wide(sample),
                   Vector::wide(sample >> 32)};
  }
  group_normals<groups>(counters, draw, keys, out);
}

// Noise of samples that are smaller than a group: groups run over the blocks of sample after
// sample.
class SmallSamples {
 public:
  // Size of the buffer for `next`. The last register is read beyond the elements.
  static constexpr int kBufferSize = kUnroll * kGroup + kHalf;

  SmallSamples(const cdrl::Stream& stream, int64_t elements, int64_t first_sample)
      : stream_(stream),
        keys_(stream.seed),
        blocks_(uint64_t(cdrl::fours_of(elements))),
        last_(int(elements - 4 * (cdrl::fours_of(elements) - 1))),
        sample_(uint64_t(first_sample)) {}

  // Writes the elements of the next blocks, without the padding of a sample's last block. Returns
  // their number.
  int64_t next(float z[kBufferSize]) {
    Counters counters[kUnroll];
    int sizes[kUnroll * kLanes];
    for (int g = 0; g < kUnroll; ++g) counters[g] = next_group(sizes + g * kLanes);
    Vector::Float noise[2 * kUnroll];
    group_normals<kUnroll>(counters, stream_.draw, keys_, noise);
    float all[kUnroll * kGroup];
    for (int i = 0; i < 2 * kUnroll; ++i) Vector::store(all + i * kHalf, noise[i]);
    int64_t count = 0;
    for (int i = 0; i < kUnroll * kLanes; ++i) {
      std::memcpy(z + count, all + 4 * i, 4 * sizeof(float));
      count += sizes[i];
    }
    return count;
  }

 private:
  // Returns the counters of the next group and writes the number of elements of each of its blocks.
  Counters next_group(int* sizes) {
    if (blocks_ == 1) {
      for (int i = 0; i < kLanes; ++i) sizes[i] = last_;
      const auto first = Vector::wide(stream_.first_sample + sample_);
      const auto index = Vector::add_wide(first, lanes_.offsets);
      sample_ += kLanes;
      return {Vector::wide(0), index, Vector::high(index)};
    }
    uint64_t block[kLanes], low[kLanes], high[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t index = stream_.first_sample + sample_;
      block[lane_of(i)] = block_;
      low[lane_of(i)] = index;
      high[lane_of(i)] = index >> 32;
      const bool last = ++block_ == blocks_;
      sizes[i] = last ? last_ : 4;
      if (last) {
        block_ = 0;
        ++sample_;
      }
    }
    return {Vector::load_wide(block), Vector::load_wide(low), Vector::load_wide(high)};
  }

  const cdrl::Stream& stream_;
  const Keys keys_;
  const Lanes lanes_;
  const uint64_t blocks_;
  const int last_;  // number of elements in a sample's last block
  uint64_t sample_, block_ = 0;
};

}  // namespace
