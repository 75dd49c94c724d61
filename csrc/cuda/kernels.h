// The CUDA kernels as the rest of the library sees them. Every call queues on the given stream and
// returns; errors of the launch throw std::runtime_error.
#pragma once

#include <cstdint>

#include "common/arguments.h"

namespace cdrl::cuda {

void langevin_step(const StepArguments& arguments, int device, uintptr_t stream);
void normal(const NormalArguments& arguments, int device, uintptr_t stream);

// As CUDA counts versions (13000 is 13.0). The driver's is 0 where there is none; asking makes no
// context.
int runtime_version();
int driver_version();

}  // namespace cdrl::cuda
