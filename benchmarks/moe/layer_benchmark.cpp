// One layer's routed experts on one rank, forward and backward, beside the bare matrix products of the same shapes.
// Prints one JSON object with the median seconds of each, and how evenly the rounds went. Threads: OMP_NUM_THREADS.
// With --dense beside the dense products too: all rows as one, which is the rate that the library reaches at these
// sizes.
#include <ATen/ATen.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "comm/local_communicator.h"
#include "device/cuda_plugin.h"
#include "kernels/kernels.h"
#include "kernels/linear.h"
#include "kernels/product.h"
#include "memory/memory_category.h"
#include "moe/routed_experts.h"

namespace conclave {
namespace {

struct Options {
  int64_t tokens = 4096, experts = 8, choices = 2, hidden = 512, intermediate = 1792;
  int64_t rounds = 7;
  bool bf16 = false;
  bool cuda = false;
  bool fp8 = false;
  bool dense = false;
};

// Standard normal, in the dtype and on the device of the options.
at::Tensor normal(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::randn(sizes, options.dtype(at::kFloat)).to(options);
}

// The layer's tensors. Choices go round over the experts: rows per expert are even.
struct Layer {
  explicit Layer(const Options& o)
      : options(at::device(o.cuda ? at::kCUDA : at::kCPU).dtype(o.bf16 ? at::kBFloat16 : at::kFloat)),
        token_TH(normal({o.tokens, o.hidden}, options)),
        residual_TH(normal({o.tokens, o.hidden}, options)),
        grad_TH(normal({o.tokens, o.hidden}, options)),
        weight_TK(at::softmax(at::randn({o.tokens, o.choices}), 1).to(options.device())),
        choice_TK((at::arange(o.tokens * o.choices) % o.experts)
                      .to(at::kInt)
                      .view({o.tokens, o.choices})
                      .to(options.device())),
        weights{normal({o.experts, 2 * o.intermediate, o.hidden}, weight_options(o)).mul_(0.02),
                normal({o.experts, o.hidden, o.intermediate}, weight_options(o)).mul_(0.02)},
        grad_gate_up(at::zeros(weights.gate_up_LJH.sizes(), options.dtype(at::kFloat))),
        grad_down(at::zeros(weights.down_LHI.sizes(), options.dtype(at::kFloat))) {}

  // As in training: a CPU's products round whole experts as they read them.
  static at::TensorOptions weight_options(const Options& o) {
    return at::device(o.cuda ? at::kCUDA : at::kCPU).dtype(o.cuda && o.bf16 ? at::kBFloat16 : at::kFloat);
  }

  at::TensorOptions options;
  at::Tensor token_TH, residual_TH, grad_TH, weight_TK, choice_TK;
  ExpertWeights weights;
  at::Tensor grad_gate_up, grad_down;
};

void run_layer(const RoutedExperts& experts, const Layer& layer) {
  RoutedExperts::Parts parts;
  experts.forward({layer.token_TH, layer.weight_TK, layer.choice_TK}, layer.residual_TH, layer.weights,
                  PreActivation::kept, parts);
  ExpertGradients gradients{{layer.grad_gate_up}, {layer.grad_down}};
  experts.backward({{}, layer.weight_TK, layer.choice_TK}, layer.grad_TH, layer.weights, gradients, std::move(parts));
}

// The products that run_layer() cannot do without, on rows that lie ready.
void run_products(const Layer& layer, const at::Tensor& row_RH, const at::Tensor& gate_up_RJ,
                  const at::Tensor& active_RI, const at::Tensor& out_RH, int64_t rows) {
  for (int64_t expert = 0; expert < layer.weights.down_LHI.size(0); ++expert) {
    const auto of_expert = [&](const at::Tensor& tensor) { return tensor.narrow(0, expert * rows, rows); };
    const at::Tensor gate_up = layer.weights.gate_up_LJH[expert], down = layer.weights.down_LHI[expert];
    linear_forward(of_expert(gate_up_RJ), of_expert(row_RH), gate_up);
    linear_forward(of_expert(out_RH), of_expert(active_RI), down);
    linear_backward_input(of_expert(active_RI), of_expert(out_RH), down);
    linear_backward_weight(layer.grad_down[expert], of_expert(out_RH), of_expert(active_RI), false);
    linear_backward_weight(layer.grad_gate_up[expert], of_expert(gate_up_RJ), of_expert(row_RH), false);
    linear_backward_input(of_expert(out_RH), of_expert(gate_up_RJ), gate_up);
  }
}

// The same multiplications as products of all rows with one expert's weights, into memory that lies ready.
void run_dense_products(const Layer& layer, const at::Tensor& row_RH, const at::Tensor& gate_up_RJ,
                        const at::Tensor& active_RI, const at::Tensor& out_RH, at::Tensor grad_gate_up,
                        at::Tensor grad_down) {
  const at::Tensor gate_up = layer.weights.gate_up_LJH[0], down = layer.weights.down_LHI[0];
  at::Tensor rows = row_RH, wide = gate_up_RJ, active = active_RI, out = out_RH;
  product(wide, rows, gate_up.t(), false);
  product(out, active, down.t(), false);
  product(active, out, down, false);
  product(grad_down, out.t(), active, false);
  product(grad_gate_up, wide.t(), rows, false);
  product(out, wide, gate_up, false);
}

// Those of run_products(), as the layer computes them where products are grouped: overlapping, or not.
void run_weight_gradients(const Layer& layer, const at::Tensor& row_RH, const at::Tensor& gate_up_RJ,
                          const at::Tensor& active_RI, const at::Tensor& out_RH, int64_t rows, bool overlapping) {
  const int64_t experts = layer.weights.down_LHI.size(0);
  const auto run = [&](const at::Tensor& gradient, const at::Tensor& grad_y, const at::Tensor& x) {
    const auto of_expert = [&](int64_t expert) {
      linear_backward_weight(gradient[expert], grad_y.narrow(0, expert * rows, rows), x.narrow(0, expert * rows, rows),
                             false);
    };
    if (overlapping) return kernels_of(x).overlapping(experts, of_expert);
    for (int64_t expert = 0; expert < experts; ++expert) of_expert(expert);
  };
  run(layer.grad_down, out_RH, active_RI);
  run(layer.grad_gate_up, gate_up_RJ, row_RH);
}

void settle(const Layer& layer) {
  if (layer.options.device().is_cuda()) load_cuda_plugin(nullptr)->synchronize();
}

template <class F>
double seconds_of(const Layer& layer, const F& work) {
  settle(layer);
  const auto start = std::chrono::steady_clock::now();
  work();
  settle(layer);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

nlohmann::ordered_json summary(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return {{"median", seconds[seconds.size() / 2]}, {"least", seconds.front()}, {"most", seconds.back()}};
}

nlohmann::ordered_json measure(const Options& o) {
  at::manual_seed(1);
  const Layer layer(o);
  LocalCommunicator alone("expert");
  StepClock clock(0);
  const RoutedExperts experts(alone, o.experts, {.products = o.fp8 ? ExpertPrecision::fp8 : ExpertPrecision::compute},
                              clock);
  const int64_t rows = o.tokens * o.choices / o.experts, all = rows * o.experts;
  const at::Tensor row_RH = normal({all, o.hidden}, layer.options);
  const at::Tensor gate_up_RJ = at::empty({all, 2 * o.intermediate}, layer.options);
  const at::Tensor active_RI = normal({all, o.intermediate}, layer.options), out_RH = at::empty_like(row_RH);
  at::Tensor grad_gate_up = at::empty_like(layer.weights.gate_up_LJH[0]);
  at::Tensor grad_down = at::empty_like(layer.weights.down_LHI[0]);
  std::vector<double> of_layer, of_products, of_dense, of_gradients, of_overlapping_gradients;
  for (int64_t round = -2; round < o.rounds; ++round) {  // alternating; the first two warm up
    const double products =
        seconds_of(layer, [&] { run_products(layer, row_RH, gate_up_RJ, active_RI, out_RH, rows); });
    const double dense =
        o.dense
            ? seconds_of(
                  layer,
                  [&] { run_dense_products(layer, row_RH, gate_up_RJ, active_RI, out_RH, grad_gate_up, grad_down); })
            : 0.0;
    const double whole = seconds_of(layer, [&] { run_layer(experts, layer); });
    const auto gradients = [&](bool overlapping) {
      return o.dense
                 ? seconds_of(
                       layer,
                       [&] { run_weight_gradients(layer, row_RH, gate_up_RJ, active_RI, out_RH, rows, overlapping); })
                 : 0.0;
    };
    const double one_by_one = gradients(false), overlapping = gradients(true);
    if (round < 0) continue;
    of_gradients.push_back(one_by_one);
    of_overlapping_gradients.push_back(overlapping);
    of_products.push_back(products);
    of_layer.push_back(whole);
    of_dense.push_back(dense);
  }
  const double flops = 18.0 * static_cast<double>(all * o.hidden * o.intermediate);
  nlohmann::ordered_json result = {{"tokens", o.tokens},
                                   {"experts", o.experts},
                                   {"choices", o.choices},
                                   {"hidden", o.hidden},
                                   {"intermediate", o.intermediate},
                                   {"dtype", o.bf16 ? "bf16" : "fp32"},
                                   {"fp8", o.fp8},
                                   {"rows_per_expert", rows},
                                   {"layer_seconds", summary(of_layer)},
                                   {"products_seconds", summary(of_products)}};
  result["product_gflops"] = flops / result["products_seconds"]["median"].get<double>() / 1e9;
  result["fraction_of_product_rate"] =
      result["products_seconds"]["median"].get<double>() / result["layer_seconds"]["median"].get<double>();
  if (!o.dense) return result;
  const double dense = summary(of_dense)["median"].get<double>();
  result["dense_seconds"] = summary(of_dense);
  result["weight_gradients_seconds"] = summary(of_gradients);
  result["overlapping_weight_gradients_seconds"] = summary(of_overlapping_gradients);
  result["dense_tflops"] = flops / dense / 1e12;
  result["fraction_of_dense_rate"] = dense / result["layer_seconds"]["median"].get<double>();
  return result;
}

// An exit code, or none where there is nothing wrong.
std::optional<int> use_gpu() {
  std::string why_not;
  if (cuda_device_count(&why_not) == 0) {
    fmt::print(stderr, "error: --cuda, but {}.\n", why_not);
    return exit_user_error;
  }
  load_cuda_plugin(nullptr)->use_device(0);
  use_kernels(at::kCUDA, load_cuda_plugin(nullptr)->kernels);
  return std::nullopt;
}

}  // namespace
}  // namespace conclave

int main(int argc, char** argv) {
  conclave::Options options;
  CLI::App app{"One layer's routed experts, forward and backward, beside their bare products."};
  app.add_option("--tokens", options.tokens);
  app.add_option("--experts", options.experts);
  app.add_option("--choices", options.choices);
  app.add_option("--hidden", options.hidden);
  app.add_option("--intermediate", options.intermediate);
  app.add_option("--rounds", options.rounds);
  CLI::Option* bf16 = app.add_flag("--bf16", options.bf16);
  CLI::Option* cuda = app.add_flag("--cuda", options.cuda, "on the first GPU");
  app.add_flag("--fp8", options.fp8, "the layer's products; those beside it stay in bf16")->needs(bf16)->needs(cuda);
  app.add_flag("--dense", options.dense, "beside the dense products, too");
  CLI11_PARSE(app, argc, argv);
  if (options.cuda)
    if (const auto code = conclave::use_gpu()) return *code;
  conclave::install_counting_allocator();  // and with it the pool of large blocks, as the program has
  std::cout << conclave::measure(options).dump() << std::endl;
  return 0;
}
