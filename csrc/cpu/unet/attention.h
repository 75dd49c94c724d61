// Self-attention over the positions of one sample, on the inner loop of convolutions.
#pragma once

#include "cpu/simd/exp.h"
#include "cpu/conv/grid.h"
#include "cpu/unet/network.h"

namespace {

// softmax(q kᵀ) v. The queries are already divided by √C. Keys lie as weights do whose outputs are
// positions, values as weights whose inputs are.
class Attention {
 public:
  Attention(const cdrl::cpu::UNetBuffers& buffers, int positions, int blocks)
      : memory_(buffers),
        positions_(positions),
        blocks_(blocks),
        keys_(blocks_of(positions)) {}

  // One sample of a group from flat q, k and v; the result takes the place of q.
  void run(float* qkv, int samples, int sample, float scale) const {
    take(qkv, samples, sample, scale);
    for (int first = 0; first < positions_; first += cdrl::cpu::kQueries) {
      const int left = positions_ - first;
      const int count = left < cdrl::cpu::kQueries ? left : cdrl::cpu::kQueries;
      const Grid queries(1, count, 1, 1);
      float* scores = memory_.scores;
      each_sum(queries, memory_.q + int64_t(first) * kBlock,
               Window{int64_t(positions_) * kBlock, blocks_}, memory_.k, keys_,
               [&](const Spot& spot, Sixteen sum) { sum.put(scores + spot.flat); });
      for (int p = 0; p < count; ++p) softmax(scores + p * kBlock, count, memory_.reciprocals + p);
      each_sum(queries, scores, Window{int64_t(count) * kBlock, keys_}, memory_.v, blocks_,
               [&](const Spot& spot, Sixteen sum) {
                 const int64_t p = spot.flat / kBlock - int64_t(spot.block) * count;
                 float* to = qkv + at(spot.block, first + p, samples, sample);
                 sum.times(memory_.reciprocals[p]).put(to);
               });
    }
  }

 private:
  int64_t at(int64_t block, int64_t position, int samples, int sample) const {
    return ((block * positions_ + position) * samples + sample) * kBlock;
  }

  void take(const float* qkv, int samples, int sample, float scale) const {
    const int64_t part = at(blocks_, 0, samples, 0), padded = int64_t(keys_) * kBlock;
    if (padded != positions_) {
      const size_t bytes = size_t(blocks_ * padded) * kBlock * sizeof(float);
      std::memset(memory_.k, 0, bytes);
      std::memset(memory_.v, 0, bytes);
    }
    for (int n = 0; n < blocks_; ++n) {
      for (int p = 0; p < positions_; ++p) {
        const float* from = qkv + at(n, p, samples, sample);
        Sixteen::load(from).times(scale).put(memory_.q + (int64_t(n) * positions_ + p) * kBlock);
        Sixteen::load(from + 2 * part).put(memory_.v + (n * padded + p) * kBlock);
        // [block of positions][channel][position]
        float* key = memory_.k + (int64_t(p / kBlock) * blocks_ + n) * kBlock * kBlock + p % kBlock;
        for (int c = 0; c < kBlock; ++c) key[c * kBlock] = from[part + c];
      }
    }
  }

  // Scores of a query, `count` apart in blocks of 16, become e^(score - largest); and one over the
  // sum of these.
  void softmax(float* scores, int64_t count, float* reciprocal) const {
    const int64_t step = count * kBlock;
    // What is beyond the last position becomes e^-87 at most, and no value is there to weigh.
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

  const cdrl::cpu::UNetBuffers& memory_;
  int positions_, blocks_, keys_;
};

}  // namespace
