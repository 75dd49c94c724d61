// A U-Net as plain addresses and sizes: what code compiled for one instruction set and code that
// serves all of them may share. Channels are counted in blocks of 16 unless a name says otherwise.
#pragma once

#include <cstdint>

#include "cpu/resnet/network.h"

namespace cdrl::cpu {

constexpr int kMaxLevels = 24;  // every level halves the image

// Mean and variance of groups of channels over all positions of a sample.
struct UNetNorm {
  float *weight, *bias;  // one number a channel
  int channels, groups;  // the true numbers
};

// A feature map in one of the places that the plan provides; none where there are no channels.
struct UNetTensor {
  int slot, level;
  int blocks, channels;  // channels: the true number
};

// One layer of the program.
//
// A residual block, of a map or of two, one after the other along their channels:
//   hidden = conv1(resampled(silu(norm1(x)))) + bias1
//   out = conv2(silu(norm2(hidden) (1 + scale) + shift)) + bias2 + shortcut(resampled(x))
// Attention: [q, k, v] = conv1 norm1(x) + bias1, out = conv2 softmax(q kᵀ/√C) v + bias2 + x.
//
// A second map's channels begin with a block of their own in conv1's inputs, and its part of the
// shortcut is a matrix of its own.
struct UNetLayer {
  bool attention;
  int resample;  // -1: 2×2 means, 1: every position doubled in both directions, 0: neither
  UNetTensor in[2], out;
  UNetNorm norm1, norm2;
  float *conv1, *bias1, *conv2, *bias2;
  float *shortcut[2], *bias_shortcut;  // null where the shortcut is x itself
  int64_t row;                         // where scale, then shift begin in a sample's row
};

struct UNetNetwork {
  int image_channels, columns;  // the stem is a matrix: 9 image_channels inputs, in blocks; and so
  float *stem, *stem_bias;      // is the head, whose outputs each pixel gathers from 9 neighbours
  float *head, *head_bias;      // the bias: one number an image channel
  UNetNorm norm;                // before the head
  int size, levels;             // height and width are size >> level
  const UNetLayer* layer;
  int layers;
  UNetTensor first, last;  // what the stem writes and the head reads
  int64_t row;             // numbers of a sample's row
  int64_t planes[kMaxLevels];  // blocks of each level's plane
  int side[kMaxLevels];        // of each level's patches
};

// Memory of one thread.
struct UNetBuffers {
  struct Map {
    float* values;    // flat: [block][row][column][sample][16]
    double* moments;  // [block][sample][2][16]: sums of values and of squares over all positions
  };
  Map* slot;
  Map hidden;
  float* plane[kMaxLevels];  // what a 3×3 convolution reads, with borders of zeros
  int zeroed;                // the borders are zero for groups of so many samples
  float* affine;             // [block][sample][2][16]: a norm as a factor and a term
  double* groups;            // of one sample's norm: [2][groups]
  float* columns;
  void* patches;                // transforms and products of a few patches
  float* qkv;                   // flat
  float *q, *k, *v;             // of one sample
  float *scores, *reciprocals;  // of a few of its positions
};

// Positions whose attention is computed together: their scores stay in the nearer caches.
constexpr int kQueries = 56;

// Samples that go through the network together.
struct UNetGroup {
  const float *x, *rows;
  int64_t row_stride;  // 0 where all samples share one row
  float* out;
  int samples;
};

}  // namespace cdrl::cpu
