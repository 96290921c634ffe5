// The functions of the plug-in; see CudaPlugin in device/cuda_plugin.h. Loading this library also registers ATen's CUDA
// kernels.
#include <ATen/cuda/CUDAContext.h>
#include <c10/core/AllocatorConfig.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include <cstdlib>

#include "cuda/kernel_table.h"
#include "cuda/launches.h"
#include "cuda/nccl_communicator.h"
#include "cuda/pinned_memory.h"
#include "cuda/pinned_slots.h"
#include "cuda/synchronization_count.h"
#include "device/cuda_plugin.h"

namespace conclave {
namespace {

int device_count() {
  return c10::cuda::device_count();
}

// What PyTorch's or the user's environment has said stays.
bool is_set(const char* variable) {
  return std::getenv(variable) != nullptr;
}

// Before the first tensor and the first group of NCCL.
void use_device(int index) {
  // The largest blocks differ in size from layer to layer with the routing: memory must be able to join.
  if (!is_set("PYTORCH_ALLOC_CONF") && !is_set("PYTORCH_CUDA_ALLOC_CONF"))
    c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
  // Sums in the switch do not come in a fixed order.
  setenv("NCCL_ALGO", "^NVLS,NVLSTree", /*overwrite=*/0);
  // Several groups at once: every rank launches in the same order.
  setenv("NCCL_LAUNCH_ORDER_IMPLICIT", "1", /*overwrite=*/0);
  // Parts of a sum that a product was split into are added in fp32.
  at::globalContext().setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false);
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(index));
}

GpuChip chip() {
  const cudaDeviceProp& properties = *at::cuda::getCurrentDeviceProperties();
  return {properties.name, properties.major, properties.minor, properties.multiProcessorCount};
}

std::unique_ptr<Communicator> make_communicator(std::string axis, int rank, int size,
                                                c10::intrusive_ptr<c10d::Store> store,
                                                std::shared_ptr<Watchdog> watchdog,
                                                std::shared_ptr<Watchdog::Calls> calls,
                                                std::chrono::milliseconds timeout) {
  return std::make_unique<NcclCommunicator>(std::move(axis), rank, size, std::move(store), std::move(watchdog),
                                            std::move(calls), timeout);
}

std::unique_ptr<OffloadMedium> make_pinned_slots() {
  return std::make_unique<PinnedSlots>();
}

void synchronize() {
  c10::cuda::device_synchronize();
}

int64_t peak_memory() {
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(c10::cuda::current_device());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

const CudaPlugin plugin{
    .device_count = device_count,
    .use_device = use_device,
    .chip = chip,
    .make_communicator = make_communicator,
    .pinned_memory = cuda::pinned_memory,
    .make_pinned_slots = make_pinned_slots,
    .synchronize = synchronize,
    .kernels = &cuda::kernel_table,
    .peak_memory = peak_memory,
    .count_synchronizations = count_synchronizations,
    .synchronizations = synchronizations,
};

}  // namespace

cuda::Stream cuda::current_stream() {
  return c10::cuda::getCurrentCUDAStream();
}

}  // namespace conclave

extern "C" __attribute__((visibility("default"))) const conclave::CudaPlugin* conclave_cuda_plugin() {
  return &conclave::plugin;
}
