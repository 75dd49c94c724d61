// The CUDA kernels. Every call queues its work on `stream` and returns without waiting; a launch
// that fails throws std::runtime_error.
#pragma once

#include <cstdint>

#include "common/arguments.h"

namespace cdrl::cuda {

void langevin_step(const StepArguments& arguments, int device, uintptr_t stream);
void normal(const NormalArguments& arguments, int device, uintptr_t stream);

// Versions as CUDA counts them (13000 is 13.0); 0 without a driver. They create no CUDA context.
int runtime_version();
int driver_version();

}  // namespace cdrl::cuda
