// Memory of whichever call is running: it grows to what the largest needed.
#pragma once

#include <mutex>

#include "cpu/runtime/memory.h"

namespace cdrl::cpu {

class Arena {
 public:
  // Holds the arena until it is destroyed.
  class Lease {
   public:
    Lease(Arena& arena, int64_t numbers) : lock_(arena.busy_), numbers_(arena.grown(numbers)) {}
    float* numbers() const { return numbers_; }

   private:
    std::lock_guard<std::mutex> lock_;
    float* numbers_;
  };

 private:
  float* grown(int64_t numbers) {
    if (numbers > size_) {
      memory_ = Memory(size_t(numbers) * sizeof(float));
      size_ = numbers;
    }
    return memory_.at<float>(0);
  }

  Memory memory_;
  int64_t size_ = 0;
  std::mutex busy_;
};

}  // namespace cdrl::cpu
