#include "step/compute_precision.h"

#include <ATen/ATen.h>

#include <chrono>

#include "base/error.h"
#include "device/device.h"
#include "kernels/product.h"

namespace conclave {

at::ScalarType compute_dtype(Precision precision, at::Device device) {
  switch (precision) {
    case Precision::fp32:
      return at::kFloat;
    case Precision::bf16:
      if (!device_of(device).has_fast_bf16())
        user_error(
            "precision.compute is bf16, but this CPU has neither AVX512-bf16 nor AMX, and would compute it many times "
            "slower than "
            "fp32. Use fp32 or auto.");
      return at::kBFloat16;
    case Precision::automatic:
      break;
  }
  return device_of(device).has_fast_bf16() ? at::kBFloat16 : at::kFloat;
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
  constexpr double seconds_wanted = 0.15;
  // What fills a GPU, several times between two waits for it, so that neither launching nor waiting counts.
  const bool by_itself = device_of(device).facts().works_by_itself;
  const int64_t size = by_itself ? 8192 : 1024;
  const int at_once = by_itself ? 10 : 1;
  // Not all the same: a GPU that multiplies such numbers needs less power, and is faster than in training.
  const at::Tensor a = at::randn({size, size}, at::device(device).dtype(dtype));
  const at::Tensor c = at::empty_like(a);
  const auto multiply = [&] {
    for (int i = 0; i < at_once; ++i) product(c, a, a, /*accumulate=*/false);
    device_of(device).synchronize();
  };
  multiply();  // warms up
  const auto start = std::chrono::steady_clock::now();
  double seconds = 0;
  double operations = 0;
  while (seconds < seconds_wanted) {
    multiply();
    operations += 2.0 * at_once * static_cast<double>(size * size * size);
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return operations / seconds;
}

}  // namespace conclave
