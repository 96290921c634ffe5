#include "train/compute_precision.h"

#include <ATen/ATen.h>

#include <chrono>

#include "base/error.h"
#include "kernels/cpu_features.h"
#include "kernels/product.h"

namespace conclave {
namespace {

bool has_fast_bf16(at::Device device) {
  return device.is_cuda() || cpu_has({"avx512_bf16"}) || cpu_has({"amx_bf16"});
}

}  // namespace

at::ScalarType compute_dtype(Precision precision, at::Device device) {
  switch (precision) {
    case Precision::fp32:
      return at::kFloat;
    case Precision::bf16:
      if (!has_fast_bf16(device))
        user_error(
            "precision.compute is bf16, but this CPU has neither AVX512-bf16 nor AMX, and would compute it many times "
            "slower than "
            "fp32. Use fp32 or auto.");
      return at::kBFloat16;
    case Precision::automatic:
      break;
  }
  return has_fast_bf16(device) ? at::kBFloat16 : at::kFloat;
}

void check_expert_precision(ExpertPrecision precision, const std::optional<GpuChip>& chip) {
  if (precision != ExpertPrecision::fp8) return;
  if (!chip)
    user_error(
        "precision.experts is fp8, but this run computes on the CPU, and no CPU has fp8 products. Use "
        "precision.experts: compute, or run on an H100 or H200.");
  // cuBLAS scales blocks in fp32 there alone; chips of 10.0 have blocks of another kind.
  if (chip->major != 9 || chip->minor != 0)
    user_error(
        "precision.experts is fp8, but this GPU is a {} of compute capability {}.{}, and fp8 products with a scale for "
        "each block need 9.0. Use precision.experts: compute, or run on an H100 or H200.",
        chip->name, chip->major, chip->minor);
}

const char* precision_name(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "bf16" : "fp32";
}

double measure_product_rate(at::ScalarType dtype, at::Device device) {
  // A GPU reaches its rate in large products that are queued: to wait for one takes longer than a small one itself.
  const int64_t size = device.is_cuda() ? 8192 : 1024;
  const int queued = device.is_cuda() ? 8 : 1;
  constexpr double seconds_wanted = 0.15;
  at::Tensor a = at::ones({size, size}, at::device(device).dtype(dtype));
  if (device.is_cuda()) a.uniform_(-1, 1);  // a chip that multiplies ones draws less power, and is clocked higher
  const at::Tensor c = at::empty_like(a);
  product(c, a, a, /*accumulate=*/false);  // warm-up
  c[0][0].item();                          // waits for a device
  const auto start = std::chrono::steady_clock::now();
  double seconds = 0;
  double operations = 0;
  while (seconds < seconds_wanted) {
    for (int i = 0; i < queued; ++i) product(c, a, a, /*accumulate=*/false);
    c[0][0].item();
    operations += 2.0 * queued * static_cast<double>(size * size * size);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return operations / seconds;
}

}  // namespace conclave
