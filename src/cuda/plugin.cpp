// The functions of the plug-in; see CudaPlugin in comm/device.h. Loading this library also registers ATen's CUDA
// kernels.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>

#include "comm/device.h"
#include "cuda/kernel_table.h"
#include "cuda/launches.h"
#include "cuda/nccl_communicator.h"
#include "cuda/pinned_slots.h"
#include "cuda/synchronization_count.h"

namespace conclave {
namespace {

int device_count() {
  return c10::cuda::device_count();
}

void use_device(int index) {
  c10::cuda::set_device(static_cast<c10::DeviceIndex>(index));
}

GpuChip chip() {
  const cudaDeviceProp& properties = *at::cuda::getCurrentDeviceProperties();
  return {properties.name, properties.major, properties.minor};
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
