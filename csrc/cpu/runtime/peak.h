// Measures the peak rate of the matrix-product loop, the compute limit of a roofline.
#pragma once

namespace cdrl::cpu {

// Operations per second that `threads` threads reach in the inner loop of matrix products.
double peak_flops(bool bfloat16, int threads);

}  // namespace cdrl::cpu
