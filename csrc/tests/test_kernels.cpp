// Tests the noise stream and the Langevin update: known answers, every variant against the scalar
// noise stream and the formula, odd sizes, misaligned views, and arrays of more than 2^31 elements.
#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "common/philox.h"
#include "cpu/noise/noise.h"
#include "cpu/runtime/dispatch.h"
#include "tests/check.h"

namespace {

void test_philox() {
  // Known-answer vectors published with the generator.
  uint32_t zero[4] = {0, 0, 0, 0};
  cdrl::philox(zero, 0);
  CHECK(zero[0] == 0x6627E8D5u && zero[3] == 0x9B00DBD8u, "got %08x %08x", zero[0], zero[3]);
  uint32_t pi[4] = {0x243F6A88u, 0x85A308D3u, 0x13198A2Eu, 0x03707344u};
  cdrl::philox(pi, 0x299F31D0A4093822ull);
  CHECK(pi[0] == 0xD16CFE09u && pi[3] == 0x24126EA1u, "got %08x %08x", pi[0], pi[3]);
}

void test_box_muller() {
  // Compares with double precision at both ends and in steps through the range.
  double worst = 0;
  for (uint64_t i = 0; i <= 0xFFFFFFFFull; i += 99991) {
    for (const uint32_t first : {uint32_t(i), uint32_t(0xFFFFFFFFull - i)}) {
      const uint32_t second = first * 2654435761u + 12345u;
      float n0, n1;
      cdrl::box_muller(first, second, n0, n1);
      const double u = cdrl::uniform(first), v = cdrl::uniform(second);
      const double radius = std::sqrt(-2 * std::log(u)), angle = 2 * M_PI * v;
      worst = std::fmax(worst, std::fabs(n0 - radius * std::cos(angle)));
      worst = std::fmax(worst, std::fabs(n1 - radius * std::sin(angle)));
    }
  }
  std::printf("scalar normals: largest error %.2e\n", worst);
  CHECK(worst < 2e-6, "largest error %g", worst);
}

constexpr float kPoison = 12345.0f;
constexpr uint64_t kSeed = 0xDEADBEEF12345678ull, kFirst = 0xFFFFFFFEull;

void test_normal(int64_t batch, int64_t elements) {
  const size_t count = size_t(batch * elements);
  std::vector<float> out(count + 2, kPoison);
  cdrl::cpu::normal({out.data() + 1, batch, elements, {kSeed, kFirst, nullptr, 77}}, 2);
  CHECK(out.front() == kPoison && out.back() == kPoison, "wrote outside its array");
  for (int64_t i = 0; i < batch * elements; ++i) {
    const int64_t element = i % elements;
    const auto four =
        cdrl::normals(kSeed, 77, kFirst + uint64_t(i / elements), uint32_t(element / 4));
    const float expected = four.n[element % 4];
    CHECK(std::fabs(out[size_t(i) + 1] - expected) < 2e-6f, "(%lld, %lld) element %lld: %g, not %g",
          (long long)batch, (long long)elements, (long long)i, out[size_t(i) + 1], expected);
  }
}

uint16_t to_bfloat16(float value) { return uint16_t(cdrl::to_bits(value) >> 16); }

// Tests misaligned x, grad and anchor (by one element), in place and out of place.
void test_step(int64_t batch, int64_t elements, bool table, bool anchor, bool half) {
  const size_t count = size_t(batch * elements);
  std::vector<float> x(count + 2), near(count + 2), out(count + 2, kPoison), grad(count + 2);
  std::vector<uint16_t> grad_half(count + 2);
  std::vector<float> coefficients(size_t(4 * batch));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = float(i % 17) - 8, near[i] = float(i % 5) * 0.3f, grad[i] = 0.25f * float(i % 9);
    grad_half[i] = to_bfloat16(grad[i]);
  }
  for (size_t i = 0; i < coefficients.size(); ++i) coefficients[i] = 0.1f + float(i % 7) * 0.05f;
  int64_t first_bad = INT64_MAX;
  cdrl::StepArguments a{out.data() + 1,
                        x.data() + 1,
                        grad.data() + 1,
                        anchor ? near.data() + 1 : nullptr,
                        table ? coefficients.data() : nullptr,
                        &first_bad,
                        batch,
                        elements,
                        {kSeed, kFirst, nullptr, 78},
                        0.5f,
                        0.25f,
                        0.125f,
                        1.5f,
                        cdrl::GradType::kFloat32};
  if (half) a.grad = grad_half.data() + 1, a.grad_type = cdrl::GradType::kBFloat16;
  cdrl::cpu::langevin_step(a, 2);
  CHECK(out.front() == kPoison && out.back() == kPoison, "wrote outside its array");
  CHECK(first_bad == INT64_MAX, "first_bad %lld of finite data", (long long)first_bad);
  for (size_t i = 1; i <= count; ++i) {
    const int64_t sample = int64_t(i - 1) / elements, element = int64_t(i - 1) % elements;
    const double c[4] = {table ? coefficients[size_t(sample)] : 0.5,
                         table ? coefficients[size_t(batch + sample)] : 0.25,
                         table ? coefficients[size_t(2 * batch + sample)] : 0.125,
                         table ? coefficients[size_t(3 * batch + sample)] : 1.5};
    const double z =
        cdrl::normals(kSeed, 78, kFirst + uint64_t(sample), uint32_t(element / 4)).n[element % 4];
    double y = x[i] + c[0] * grad[i] + c[2] * z;
    if (anchor) y -= c[1] * (double(x[i]) - near[i]);
    CHECK(std::fabs(out[i] - c[3] * y) < 4e-6, "element %zu: %g, not %g", i - 1, out[i], c[3] * y);
  }
  a.out = x.data() + 1;
  cdrl::cpu::langevin_step(a, 1);
  CHECK(std::memcmp(a.out, out.data() + 1, count * sizeof(float)) == 0, "in place differs");
  if (count > 0) {
    x[count] = std::numeric_limits<float>::infinity();
    cdrl::cpu::langevin_step(a, 2);
    const int64_t expected = (int64_t(78) << 31) + batch - 1;
    CHECK(first_bad == expected, "first_bad %lld", (long long)first_bad);
  }
}

// Tests a part beyond 2^31 elements, of an array whose other pages are never touched.
void test_far_part() {
  const int64_t elements = int64_t(1) << 20, batch = 4096;  // 2^32 elements
  const size_t bytes = size_t(batch * elements) * sizeof(float);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    CHECK(false, "mmap of %zu bytes", bytes);
    return;
  }
  float* x = static_cast<float*>(memory);
  const cdrl::StepArguments a{x,
                              x,
                              x,
                              nullptr,
                              nullptr,
                              nullptr,
                              batch,
                              elements,
                              {kSeed, 0, nullptr, 5},
                              1.0f,
                              0.0f,
                              1.0f,
                              1.0f,
                              cdrl::GradType::kFloat32};
  const int64_t sample = batch - 2, block = elements / 4 - 64;
  cdrl::cpu::kernels().langevin_step(a, {sample, sample + 1, block, elements / 4});
  for (int64_t element = 4 * block; element < elements; ++element) {
    const float expected =
        cdrl::normals(kSeed, 5, uint64_t(sample), uint32_t(element / 4)).n[element % 4];
    CHECK(std::fabs(x[sample * elements + element] - expected) < 2e-6f, "element %lld",
          (long long)element);
  }
  CHECK(x[(sample + 1) * elements] == 0.0f, "wrote into the next sample");
  munmap(memory, bytes);
}

void test_state() {
  // A stream's state in memory is read and its draw advanced by one.
  std::vector<float> x(64, 0.0f), zero(64, 0.0f), direct(64, 0.0f);
  int64_t state[4] = {int64_t(kSeed), 9, 5, 0};
  cdrl::StepArguments a{
      x.data(), x.data(),         zero.data(), nullptr, nullptr, nullptr, 4,
      16,       {0, 0, state, 0}, 1.0f,        0.0f,    1.0f,    1.0f,    cdrl::GradType::kFloat32};
  cdrl::cpu::langevin_step(a, 1);
  a.out = direct.data(), a.x = zero.data(), a.stream = {kSeed, 5, nullptr, 9};
  cdrl::cpu::langevin_step(a, 1);
  CHECK(x == direct, "state and arguments differ");
  CHECK(state[1] == 10 && state[3] == 0, "draw %lld", (long long)state[1]);
}

}  // namespace

int main() {
  test_philox();
  test_box_muller();
  for (const auto& variant : cdrl::cpu::variants()) {
    std::printf("variant %s\n", variant.name);
    cdrl::cpu::use_variant(variant.name);
    for (const int64_t elements : {1, 2, 3, 4, 7, 31, 32, 33, 64, 65, 127, 3072}) {
      for (const int64_t batch : {0, 1, 5}) {
        test_normal(batch, elements);
        for (int options = 0; options < 8; ++options) {
          test_step(batch, elements, options & 1, options & 2, options & 4);
        }
      }
    }
    test_normal(2, 100003);  // large enough to be cut within samples and shared among threads
    test_step(2, 100003, true, true, false);
    test_normal(3, 0);
    test_far_part();
    test_state();
  }
  expect_error("abacus", [] { cdrl::cpu::use_variant("abacus"); });
  std::printf(failures == 0 ? "all passed\n" : "%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
