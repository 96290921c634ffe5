// What the entries of src/kernels choose in this program.
#pragma once

namespace conclave {

// Kernels that copy tensors on the CPU to the GPU, run ours there and copy the results back.
void use_kernels_through_device();

// While it lives: ours for tensors on the GPU, as in training, and the CPU's for those there.
class KernelsAsInTraining {
 public:
  KernelsAsInTraining();
  ~KernelsAsInTraining() { use_kernels_through_device(); }
  KernelsAsInTraining(const KernelsAsInTraining&) = delete;
};

}  // namespace conclave
