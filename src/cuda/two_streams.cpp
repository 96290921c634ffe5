#include "cuda/two_streams.h"

#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDAGuard.h>

#include <map>
#include <mutex>

namespace conclave {
namespace {

// One a device, made when it is first used there: each stream that multiplies has a workspace of cuBLAS, which the
// planner counts, and to make one on a device of another rank would take memory there.
c10::cuda::CUDAStream second_stream() {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, c10::cuda::CUDAStream> of_device;
  const std::lock_guard lock(mutex);
  const c10::DeviceIndex device = c10::cuda::current_device();
  const auto found = of_device.find(device);
  if (found != of_device.end()) return found->second;
  return of_device.emplace(device, c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device)).first->second;
}

}  // namespace

void cuda::on_two_streams(int64_t count, const std::function<void(int64_t)>& f) {
  const c10::cuda::CUDAStream first = c10::cuda::getCurrentCUDAStream(), second = second_stream();
  at::cuda::CUDAEvent ready, done;
  ready.record(first);
  ready.block(second);
  const auto join = [&] {
    done.record(second);
    done.block(first);
  };
  try {
    for (int64_t i = 0; i < count; ++i) {
      const c10::cuda::CUDAStreamGuard guard(i % 2 == 0 ? first : second);
      f(i);
    }
  } catch (...) {
    join();  // what the second stream reads and writes is freed for the first one alone
    throw;
  }
  join();
}

}  // namespace conclave
