// A buffer that calls take in turn; it grows to the largest request.
#pragma once

#include <mutex>

#include "cpu/runtime/memory.h"

namespace cdrl::cpu {

class Arena {
 public:
  // Locks the arena until the lease is destroyed.
  class Lease {
   public:
    Lease(Arena& arena, int64_t floats) : lock_(arena.mutex_), floats_(arena.grow(floats)) {}
    float* floats() const { return floats_; }

   private:
    std::lock_guard<std::mutex> lock_;
    float* floats_;
  };

 private:
  float* grow(int64_t floats) {
    if (floats > size_) {
      memory_ = Memory(size_t(floats) * sizeof(float));
      size_ = floats;
    }
    return memory_.at<float>(0);
  }

  Memory memory_;
  int64_t size_ = 0;
  std::mutex mutex_;
};

}  // namespace cdrl::cpu
