// Which device a rank computes on.
#pragma once

#include <ATen/core/Tensor.h>

#include "comm/process.h"
#include "config/run_section.h"

namespace conclave {

// Whether ranks may share a GPU, talking through the host's memory: CONCLAVE_SHARE_GPUS=1 in the environment. For
// checking several ranks on one GPU; slow.
bool ranks_share_gpus();

// The device of this rank: for `automatic` CUDA where there is a GPU for each rank of the host, else the CPU, with a
// warning where there is a GPU at all. CUDA that cannot be had is a UserError with the reason.
at::Device choose_device(WantedDevice wanted, const Process& process);

}  // namespace conclave
