// Helpers of all tests: CHECK, which counts and prints failures, and pseudo-random numbers.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

static int failures = 0;

#define CHECK(condition, ...)                                     \
  do {                                                            \
    if (!(condition)) {                                           \
      ++failures;                                                 \
      std::printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                   \
      std::printf("\n");                                          \
    }                                                             \
  } while (0)

// Pseudo-random numbers in (-1, 1) times `scale`.
static inline std::vector<float> numbers(size_t count, double scale, uint32_t seed) {
  std::vector<float> result(count);
  uint64_t state = seed * 2654435761u + 1;
  for (float& x : result) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    x = float(scale * (double(state >> 40) / double(1 << 23) - 1.0));
  }
  return result;
}

// Checks that body() throws an error whose message contains `part`.
template <class Body>
static void expect_error(const char* part, const Body& body) {
  try {
    body();
    CHECK(false, "no error that contains '%s'", part);
  } catch (const std::exception& error) {
    CHECK(std::strstr(error.what(), part) != nullptr, "%s", error.what());
  }
}
