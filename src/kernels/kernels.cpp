#include "kernels/kernels.h"

#include <ATen/ATen.h>

#include <array>
#include <atomic>

#include "kernels/attention_sink.h"
#include "kernels/bias.h"
#include "kernels/cpu.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/fp8_product.h"
#include "kernels/linear.h"
#include "kernels/rms_norm.h"
#include "kernels/shares.h"
#include "kernels/swiglu.h"
#include "kernels/values.h"

namespace conclave {
namespace {

// Of each type of device; null: not set. Threads that compute on another type may look meanwhile.
constinit std::array<std::atomic<const Kernels*>, at::COMPILE_TIME_MAX_DEVICE_TYPES> tables{};

}  // namespace

constinit const Kernels reference_kernels{
    .multiply = reference::multiply,
    .weight_gradient = reference::weight_gradient,
    .grouped_product = reference::grouped_product,
    .overlapping =
        [](int64_t count, const std::function<void(int64_t)>& f) {
          for (int64_t i = 0; i < count; ++i) f(i);
        },
    .attention_forward = reference::attention_forward,
    .attention_backward = reference::attention_backward,
    .cached_attention = reference::cached_attention,
    .sink_forward_ = reference::sink_forward_,
    .sink_backward = reference::sink_backward,
    .expand_latent = reference::expand_latent,
    .collect_latent = reference::collect_latent,
    .rotary_table = reference::rotary_table,
    .rotary_ =
        [](at::Tensor rows_TN, int64_t heads, int64_t head_dim, const RotaryTable& table, bool inverse) {
          (inverse ? reference::rotary_backward_ : reference::rotary_forward_)(std::move(rows_TN), heads, head_dim,
                                                                               table);
        },
    .swiglu_forward = reference::swiglu_forward,
    .swiglu_backward = reference::swiglu_backward,
    .clamped_swiglu_forward = reference::clamped_swiglu_forward,
    .clamped_swiglu_backward = reference::clamped_swiglu_backward,
    .add_bias = reference::add_bias,
    .bias_backward = reference::bias_backward,
    .bias_scale_backward_add = reference::bias_scale_backward_add,
    .rms_norm_forward = reference::rms_norm_forward,
    .rms_norm_repeat = reference::rms_norm_repeat,
    .rms_norm_backward = reference::rms_norm_backward,
    .cross_entropy =
        [](const at::Tensor& logits_CV, const at::Tensor& targets_C) {
          return at::scalar_tensor(reference::cross_entropy(logits_CV, targets_C), at::kDouble);
        },
    .cross_entropy_with_gradient_ =
        [](at::Tensor logits_CV, const at::Tensor& targets_C, double scale) {
          return at::scalar_tensor(reference::cross_entropy_with_gradient_(std::move(logits_CV), targets_C, scale),
                                   at::kDouble);
        },
    .adamw_step = reference::adamw_step,
    .sum_of_squares = [](const at::Tensor& x) { return at::scalar_tensor(reference::sum_of_squares(x), at::kDouble); },
    .gather_rows = reference::gather_rows,
    .pack_rows = reference::pack_rows,
    .unpack_rows = reference::unpack_rows,
    .combine_rows = reference::combine_rows,
    .combine_messages = reference::combine_messages,
    .order_by_expert = [](const at::Tensor& expert_of_choice_TK, int64_t experts,
                          const at::Tensor&) { return reference::order_by_expert(expert_of_choice_TK, experts); },
    .order_arrivals = reference::order_arrivals,
    .route = reference::route,
    .route_to = reference::route_to,
    .shares_of = reference::shares_of,
    .routing_statistics = reference::routing_statistics,
    .route_backward = reference::route_backward,
    .jitter_ = reference::jitter_,
    .embedding_forward = reference::embedding_forward,
    .embedding_backward = reference::embedding_backward,
    .quantize_rows = reference::quantize_rows,
    .quantize_columns = reference::quantize_columns,
    .quantize_weight =
        [](const at::Tensor& w_NM, bool transposed) {
          return (transposed ? reference::quantize_transposed_weight : reference::quantize_weight)(w_NM);
        },
    .fp8_product = reference::fp8_product,
    .copy = reference::copy,
    .add = reference::add,
    .take = reference::take,
    .to_host = reference::to_host,
};

const Kernels& cpu_kernels() {
  static const Kernels kernels = [] {
    Kernels table = reference_kernels;
#define CONCLAVE_OF_CPU(op) table.op = cpu::op;
    CONCLAVE_FOR_EACH_CPU_KERNEL(CONCLAVE_OF_CPU)
#undef CONCLAVE_OF_CPU
    return table;
  }();
  return kernels;
}

void use_kernels(at::DeviceType device, const Kernels* kernels) {
  tables.at(static_cast<size_t>(device)) = kernels;
}

const Kernels& kernels_of(at::DeviceType device) {
  if (const Kernels* kernels = tables.at(static_cast<size_t>(device))) return *kernels;
  return device == at::kCPU ? cpu_kernels() : reference_kernels;
}

const Kernels& kernels_of(const at::Tensor& tensor) {
  // On paper a dtype is but a size.
  const bool covered = tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16 || tensor.is_meta();
  return covered ? kernels_of(tensor.device().type()) : reference_kernels;
}

}  // namespace conclave
