// What surrounds attention, on CUDA: norms, rotary embedding, sinks, latent keys and values. Arguments as in
// kernels/*.h, already checked.
#pragma once

#include "kernels/kernels.h"

namespace conclave::cuda {

void use_attention_kernels(Kernels& table);

}  // namespace conclave::cuda
