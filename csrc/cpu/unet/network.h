// A U-Net as plain addresses and sizes, shared by forward.cpp (compiled once) and the kernel.
// Channels are counted in blocks of 16 unless a name says otherwise.
#pragma once

#include <cstdint>

namespace cdrl::cpu {

constexpr int kMaxLevels = 24;  // every level halves the image

// A group norm over all positions of a sample.
struct UNetNorm {
  float *weight, *bias;  // one float per channel
  int channels, groups;  // the number of channels itself, not of blocks
};

// A feature map, in one of the slots that UNetForward allocates; absent where `channels` is 0.
struct UNetTensor {
  int slot, level;
  int blocks, channels;  // channels: the number itself
};

// One layer of the network.
//
// A residual block of one map, or of two maps concatenated along their channels:
//   hidden = conv1(resampled(silu(norm1(x)))) + bias1
//   out = conv2(silu(norm2(hidden) (1 + scale) + shift)) + bias2 + shortcut(resampled(x))
// Attention: [q, k, v] = conv1 norm1(x) + bias1, out = conv2 softmax(q kᵀ/√C) v + bias2 + x.
//
// The channels of a second map begin with a new block in conv1's inputs, and its part of the
// shortcut is a separate matrix.
struct UNetLayer {
  bool attention;
  int resample;  // -1: 2×2 means, 1: every position doubled in both directions, 0: neither
  UNetTensor in[2], out;
  UNetNorm norm1, norm2;
  float *conv1, *bias1, *conv2, *bias2;
  float *shortcut[2], *bias_shortcut;  // null where the shortcut is x itself
  int64_t row;                         // offset of scale, then shift in a sample's row
};

struct UNetNetwork {
  int image_channels, columns;  // `columns` is 9 image_channels, in blocks
  float *stem, *stem_bias;      // a matrix with `columns` inputs (conv/columns.h)
  float *head, *head_bias;      // a matrix with `columns` outputs; one bias per image channel
  UNetNorm norm;                // before the head
  int size, levels;             // height and width are size >> level
  const UNetLayer* layer;
  int layers;
  UNetTensor first, last;      // the stem's output and the head's input
  int64_t row;                 // floats of a sample's row
  int64_t planes[kMaxLevels];  // blocks of each level's plane
  int side[kMaxLevels];        // side of each level's patches
};

// The buffers of one thread.
struct UNetBuffers {
  struct Map {
    float* values;    // flat: [block][row][column][sample][16]
    double* moments;  // [block][sample][2][16]: sums of values and of squares over all positions
  };
  Map* slot;
  Map hidden;
  float* plane[kMaxLevels];  // inputs of 3×3 convolutions, with borders of zeros
  int zeroed;                // number of samples for which the planes' borders are zero
  float* affine;             // [block][sample][2][16]: a norm as a factor and a term
  double* groups;            // [2][groups]: means and reciprocal deviations of one sample's norm
  float* columns;
  void* patches;                // transforms and products of one group of patches
  float* qkv;                   // flat
  float *q, *k, *v;             // of one sample
  float *scores, *reciprocals;  // of up to kQueries of its positions
};

// Positions whose attention is computed together, so that their scores stay in the inner caches.
constexpr int kQueries = 56;

// Samples that go through the network together.
struct UNetGroup {
  const float *x, *rows;
  int64_t row_stride;  // 0 where all samples share one row
  float* out;
  int samples;
};

}  // namespace cdrl::cpu
