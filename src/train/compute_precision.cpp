#include "train/compute_precision.h"

#include <ATen/core/ivalue.h>
#include <ATen/cpu/Utils.h>

#include <chrono>

#include "base/error.h"

namespace conclave {
namespace {

bool has_fast_bf16(at::Device device) {
  if (device.is_cuda()) return true;
  const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto has = [&](const char* name) {
    const auto found = capabilities.find(name);
    return found != capabilities.end() && found->second.toBool();
  };
  return has("avx512_bf16") || has("amx_bf16");
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

const char* precision_name(at::ScalarType dtype) {
  return dtype == at::kBFloat16 ? "bf16" : "fp32";
}

double measure_product_rate(at::ScalarType dtype, at::Device device) {
  constexpr int64_t size = 1024;
  constexpr double seconds_wanted = 0.15;
  const at::Tensor a = at::ones({size, size}, at::device(device).dtype(dtype));
  at::Tensor c = at::mm(a, a);  // warm-up
  c[0][0].item();               // waits for a device
  const auto start = std::chrono::steady_clock::now();
  double seconds = 0;
  double operations = 0;
  while (seconds < seconds_wanted) {
    at::mm_out(c, a, a);
    c[0][0].item();
    operations += 2.0 * size * size * size;
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return operations / seconds;
}

}  // namespace conclave
