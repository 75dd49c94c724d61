// Self-attention over the positions of one sample, with the inner loop of convolutions.
#pragma once

#include "cpu/conv/grid.h"
#include "cpu/simd/exp.h"
#include "cpu/unet/network.h"

namespace {

// softmax(q kᵀ / √C) v. `run` divides the queries by √C. Keys are packed as weights with positions
// as outputs, values as weights with positions as inputs.
class Attention {
 public:
  Attention(const cdrl::cpu::UNetBuffers& buffers, int positions, int blocks)
      : buffers_(buffers), positions_(positions), blocks_(blocks), keys_(blocks_of(positions)) {}

  // Replaces q by the result, for one sample of a group in flat q, k and v. `scale` is 1 / √C.
  void run(float* qkv, int samples, int sample, float scale) const {
    pack(qkv, samples, sample, scale);
    for (int first = 0; first < positions_; first += cdrl::cpu::kQueries) {
      const int left = positions_ - first;
      const int count = left < cdrl::cpu::kQueries ? left : cdrl::cpu::kQueries;
      const Grid queries(1, count, 1, 1);
      float* scores = buffers_.scores;
      each_sum(queries, buffers_.q + int64_t(first) * kBlock,
               Window{int64_t(positions_) * kBlock, blocks_}, buffers_.k, keys_,
               [&](const Spot& spot, Sixteen sum) { sum.put(scores + spot.flat); });
      for (int p = 0; p < count; ++p) softmax(scores + p * kBlock, count, buffers_.reciprocals + p);
      each_sum(queries, scores, Window{int64_t(count) * kBlock, keys_}, buffers_.v, blocks_,
               [&](const Spot& spot, Sixteen sum) {
                 const int64_t p = spot.flat / kBlock - int64_t(spot.block) * count;
                 float* to = qkv + at(spot.block, first + p, samples, sample);
                 sum.times(buffers_.reciprocals[p]).put(to);
               });
    }
  }

 private:
  int64_t at(int64_t block, int64_t position, int samples, int sample) const {
    return ((block * positions_ + position) * samples + sample) * kBlock;
  }

  // Copies a sample's q, scaled, k and v from the group's layout.
  void pack(const float* qkv, int samples, int sample, float scale) const {
    const int64_t part = at(blocks_, 0, samples, 0), padded = int64_t(keys_) * kBlock;
    if (padded != positions_) {
      const size_t bytes = size_t(blocks_ * padded) * kBlock * sizeof(float);
      std::memset(buffers_.k, 0, bytes);
      std::memset(buffers_.v, 0, bytes);
    }
    for (int n = 0; n < blocks_; ++n) {
      for (int p = 0; p < positions_; ++p) {
        const float* from = qkv + at(n, p, samples, sample);
        Sixteen::load(from).times(scale).put(buffers_.q + (int64_t(n) * positions_ + p) * kBlock);
        Sixteen::load(from + 2 * part).put(buffers_.v + (n * padded + p) * kBlock);
        // [block of positions][channel][position]
        float* key =
            buffers_.k + (int64_t(p / kBlock) * blocks_ + n) * kBlock * kBlock + p % kBlock;
        for (int c = 0; c < kBlock; ++c) key[c * kBlock] = from[part + c];
      }
    }
  }

  // Replaces the scores of a query, whose blocks of 16 are `count` positions apart, by
  // e^(score - largest) and writes the reciprocal of their sum.
  void softmax(float* scores, int64_t count, float* reciprocal) const {
    const int64_t step = count * kBlock;
    // Scores beyond the last position become e^-87 at most, and the values there are 0.
    float* last = scores + (keys_ - 1) * step;
    for (int i = positions_ - (keys_ - 1) * kBlock; i < kBlock; ++i) last[i] = -3e38f;
    float lanes[kBlock];
    std::memcpy(lanes, scores, sizeof lanes);
    for (int64_t n = 1; n < keys_; ++n) {
      for (int i = 0; i < kBlock; ++i) {
        const float s = scores[n * step + i];
        lanes[i] = s > lanes[i] ? s : lanes[i];
      }
    }
    float largest = lanes[0];
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    for (float& lane : lanes) lane = -largest;
    const Sixteen shift = Sixteen::load(lanes);
    std::memset(lanes, 0, sizeof lanes);
    Sixteen sums = Sixteen::load(lanes);
    for (int64_t n = 0; n < keys_; ++n) {
      const Sixteen e = exponential(Sixteen::load(scores + n * step).plus(shift));
      e.put(scores + n * step);
      sums = sums.plus(e);
    }
    sums.put(lanes);
    float sum = 0.0f;
    for (float lane : lanes) sum += lane;
    *reciprocal = 1.0f / sum;
  }

  const cdrl::cpu::UNetBuffers& buffers_;
  int positions_, blocks_, keys_;
};

}  // namespace
