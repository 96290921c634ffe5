// The CUDA half of the program: a plug-in (src/cuda) that is loaded only when a
// GPU is wanted, so that a program that computes on the CPU never maps the CUDA libraries.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "comm/communicator.h"
#include "comm/watchdog.h"
#include "memory/offload_medium.h"

namespace conclave {

struct Kernels;  // kernels/kernels.h

// What a GPU is: its name, its compute capability, and its multiprocessors.
struct GpuChip {
  std::string name;
  int major = 0;
  int minor = 0;
  int processors = 0;
};

// What libconclave_cuda.so offers, by its function conclave_cuda_plugin().
struct CudaPlugin {
  int (*device_count)();  // 0 without a driver
  void (*use_device)(int index);
  GpuChip (*chip)();  // of the device in use
  // NCCL between the ranks of a group, each with its device in use. `store` is the group's alone.
  std::unique_ptr<Communicator> (*make_communicator)(std::string axis, int rank, int size,
                                                     c10::intrusive_ptr<c10d::Store> store,
                                                     std::shared_ptr<Watchdog> watchdog,
                                                     std::shared_ptr<Watchdog::Calls> calls,
                                                     std::chrono::milliseconds timeout);
  // uint8 [bytes] of the host that the device copies from and to at full speed, freed with the tensor.
  at::Tensor (*pinned_memory)(int64_t bytes);
  // Pinned host memory, copied to and from on a stream of its own.
  std::unique_ptr<OffloadMedium> (*make_pinned_slots)();
  void (*synchronize)();  // the host waits until the device in use has done all its work
  const Kernels* kernels;
  int64_t (*peak_memory)();  // the most bytes that tensors have had on the device in use
  // Counts the waits of this thread for the device (cuda/synchronization_count.h), from zero; or no longer.
  void (*count_synchronizations)(bool on);
  int64_t (*synchronizations)();
};

// The plug-in, loaded on the first call and never unloaded; null if it cannot be, and then `why_not` says why.
const CudaPlugin* load_cuda_plugin(std::string* why_not);

// GPUs that this process can use; 0 without the plug-in, a driver or a device, and then `why_not` (if given) says why.
int cuda_device_count(std::string* why_not = nullptr);

}  // namespace conclave
