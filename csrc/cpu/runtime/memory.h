// Memory of weights and workspaces: one aligned allocation, cut into pieces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace cdrl::cpu {

constexpr size_t kAlignment = 64;

// Aligned memory, filled with zeros when it is allocated.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes);
  template <class T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(bytes_.get() + offset);
  }

 private:
  struct Free {
    void operator()(char* p) const;
  };
  std::unique_ptr<char, Free> bytes_;
};

// Hands out aligned pieces of a memory. If the memory is empty, the pieces are null and only their
// bytes are counted, so that one function both measures and places.
class Pieces {
 public:
  explicit Pieces(const Memory& memory) : memory_(memory) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = memory_.at<char>(0) == nullptr ? nullptr : memory_.at<T>(used_);
    used_ += (size_t(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
  size_t bytes() const { return used_; }

 private:
  const Memory& memory_;
  size_t used_ = 0;
};

// A batch in `groups` groups of `size` samples; the last group may have fewer.
struct Split {
  int64_t size, groups;
  int threads;
};

// Splits a batch into groups of at most `limit` samples. Every thread gets the same number of
// groups, at least one, as far as there are samples.
Split split_batch(int64_t batch, int threads, int64_t limit);

}  // namespace cdrl::cpu
