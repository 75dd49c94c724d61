// A residual energy network as plain addresses and sizes, shared by gradient.cpp (compiled once)
// and the kernel. Channels are counted in blocks of 16 unless a name says otherwise.
#pragma once

#include <cstdint>

namespace cdrl::cpu {

constexpr int kMaxStages = 24;  // every stage halves the image

// h' = conv2(leaky(conv1(leaky(h)) + row)) + bias2 + (shortcut ? shortcut(h) + bias_shortcut : h).
// Weights are packed for the inner loop; transposed convolutions have packed weights of their own.
struct ResNetBlock {
  int in, out;
  int in_channels, out_channels;   // the numbers of channels themselves
  void *conv1, *conv2, *shortcut;  // `shortcut` may be null
  void *conv1_transposed, *conv2_transposed, *shortcut_transposed;
  float *bias2, *bias_shortcut;
  int64_t row;        // offset of its row in a sample's padded rows
  int64_t sign_bits;  // offset, in uint16, of the sign bits of h and then of conv1's result
  int64_t signs;      // offset of the same in the bytes that tests read
};

struct ResNetStage {
  int height, width;
  int side;           // side of its patches
  int first, end;     // its blocks
  int channels;       // the largest input or output of its blocks
  int64_t sign_bits;  // uint16 of sign bits per sample
};

struct ResNetNetwork {
  bool bfloat16;
  int image_channels, columns;  // the stem is a matrix with 9 image_channels inputs, in blocks
  float *stem, *stem_transposed, *stem_bias;
  int stages;
  const ResNetStage* stage;
  const ResNetBlock* block;
  int64_t rows;   // floats of a sample's rows, padded
  int64_t signs;  // bytes of a sample's signs
};

// The buffers of one thread. A stage takes its samples in chunks of at most `limit`; only the sign
// bits are kept for all samples of the group.
struct ResNetBuffers {
  struct Stage {
    void *input, *hidden, *raw;  // padded planes; `raw` is null without a shortcut
    float* state;                // h, then its gradient
    uint16_t* sign_bits;
    int limit;
    int zeroed;  // number of samples for which the planes' borders are zero
  };
  Stage stage[kMaxStages];
  float *columns, *rows, *heads;
  void* patches;
};

// Samples that go through the network together. Strides are 0 where all samples share one row.
struct ResNetGroup {
  const float *y, *rows, *heads;  // rows and heads are padded
  int64_t row_stride, head_stride;
  float *energies, *gradient;  // `gradient` may be null
  uint8_t* signs;              // may be null
  int samples;
};

// Returns the size of equal parts when `samples` are cut into the fewest parts of at most `limit`.
static inline int part_of(int samples, int limit) {
  const int parts = (samples + limit - 1) / limit;
  return (samples + parts - 1) / parts;
}

}  // namespace cdrl::cpu
