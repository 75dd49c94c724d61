// Shares groups of samples out among threads, each of which has its own workspace.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/runtime/memory.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace cdrl::cpu {

// One workspace per thread, kept between calls. A `Workspace` is a `memory` and pointers into it.
template <class Workspace>
class Workspaces {
 public:
  // Calls body(workspace, first sample, number of samples) for every group. place(workspace, size)
  // must place the buffers of a group of `size` samples in the workspace's memory and return their
  // bytes; if the memory is empty, it only returns the bytes.
  template <class Place, class Body>
  void each_group(int64_t batch, const Split& split, const Place& place, const Body& body) {
    grow(split, place);
#pragma omp parallel for schedule(dynamic) num_threads(split.threads) if (split.threads > 1)
    for (int64_t group = 0; group < split.groups; ++group) {
#ifdef _OPENMP
      const size_t thread = size_t(omp_get_thread_num());
#else
      const size_t thread = 0;
#endif
      const int64_t first = group * split.size;
      body(workspaces_[thread], first, int(std::min(split.size, batch - first)));
    }
  }

 private:
  template <class Place>
  void grow(const Split& split, const Place& place) {
    if (split.size > size_) workspaces_.clear();
    size_ = std::max(size_, split.size);
    while (int(workspaces_.size()) < split.threads) {
      Workspace workspace;
      workspace.memory = Memory(place(workspace, size_));
      place(workspace, size_);
      workspaces_.push_back(std::move(workspace));
    }
  }

  std::vector<Workspace> workspaces_;
  int64_t size_ = 0;  // samples per group that the workspaces are large enough for
};

}  // namespace cdrl::cpu
