// A residual energy network as plain addresses and sizes: what code compiled for one instruction
// set and code that serves all of them may share. Channels are counted in blocks of 16 unless a
// name says otherwise.
#pragma once

#include <cstdint>

#include "cpu/conv/patches.h"

namespace cdrl::cpu {

constexpr int kMaxStages = 24;  // every stage halves the image

// h' = conv2(leaky(conv1(leaky(h)) + row)) + bias2 + (shortcut ? shortcut(h) + bias_shortcut : h).
// Weights are packed for the inner loop; those of transposed convolutions are weights again.
struct ResNetBlock {
  int in, out;
  int in_channels, out_channels;  // the true numbers
  void *conv1, *conv2, *shortcut;  // `shortcut` may be null
  void *conv1_transposed, *conv2_transposed, *shortcut_transposed;
  float *bias2, *bias_shortcut;
  int64_t row;    // where its row begins in a sample's padded rows
  int64_t masks;  // where its sign bits begin: those of h, then of the hidden activation; in words
  int64_t signs;  // the same among the bytes written for tests
};

struct ResNetStage {
  int height, width;
  int side;        // of its patches
  int first, end;  // blocks
  int channels;    // the most that any of its blocks takes or gives
  int64_t masks;   // words of sign bits, a sample
};

struct ResNetNetwork {
  bool bfloat16;
  int image_channels, columns;  // the stem is a matrix: 9 image_channels inputs, in blocks
  float *stem, *stem_transposed, *stem_bias;
  int stages;
  const ResNetStage* stage;
  const ResNetBlock* block;
  int64_t rows;   // numbers of a sample's rows, padded
  int64_t signs;  // bytes of a sample's signs
};

// Memory of one thread. A stage serves one chunk of samples after the other, `limit` at most; only
// the signs of all samples of the group are kept.
struct ResNetBuffers {
  struct Stage {
    void *input, *hidden, *raw;  // padded planes; `raw` is null without a shortcut
    float* state;                // h, then its gradient
    uint16_t* masks;
    int limit;
    int zeroed;  // the planes' borders are zero for so many samples
  };
  Stage stage[kMaxStages];
  float *columns, *rows, *heads;
  void* patches;
};

// Samples that go through the network together. Strides are 0 where all samples share one row.
struct ResNetGroup {
  const float *y, *rows, *heads;  // rows and heads padded
  int64_t row_stride, head_stride;
  float *energies, *gradient;  // `gradient` may be null
  uint8_t* signs;              // may be null
  int samples;
};

// Samples to a part when `samples` are cut into as few parts of at most `limit` as will do.
static inline int part_of(int samples, int limit) {
  const int parts = (samples + limit - 1) / limit;
  return (samples + parts - 1) / parts;
}

}  // namespace cdrl::cpu
