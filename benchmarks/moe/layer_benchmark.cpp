// One layer's routed experts on one rank, forward and backward, beside the bare matrix products of the same shapes.
// Prints one JSON object with the median seconds of each, and how evenly the rounds went. Threads: OMP_NUM_THREADS.
#include <ATen/ATen.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "comm/local_communicator.h"
#include "kernels/linear.h"
#include "memory/memory_category.h"
#include "moe/routed_experts.h"

namespace conclave {
namespace {

struct Options {
  int64_t tokens = 4096, experts = 8, choices = 2, hidden = 512, intermediate = 1792;
  int64_t rounds = 7;
  bool bf16 = false;
};

// The layer's tensors. Choices go round over the experts: rows per expert are even.
struct Layer {
  explicit Layer(const Options& o)
      : options(at::device(at::kCPU).dtype(o.bf16 ? at::kBFloat16 : at::kFloat)),
        token_TH(at::randn({o.tokens, o.hidden}).to(options)),
        residual_TH(at::randn({o.tokens, o.hidden}).to(options)),
        grad_TH(at::randn({o.tokens, o.hidden}).to(options)),
        weight_TK(at::softmax(at::randn({o.tokens, o.choices}), 1)),
        choice_TK((at::arange(o.tokens * o.choices) % o.experts).to(at::kInt).view({o.tokens, o.choices})),
        weights{(at::randn({o.experts, 2 * o.intermediate, o.hidden}) * 0.02).to(options),
                (at::randn({o.experts, o.hidden, o.intermediate}) * 0.02).to(options)},
        grad_gate_up(at::zeros(weights.gate_up_LJH.sizes())),
        grad_down(at::zeros(weights.down_LHI.sizes())) {}

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

template <class F>
double seconds_of(const F& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
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
  const auto dispatcher = make_dispatcher(alone, o.experts, clock);
  const RoutedExperts experts(*dispatcher, alone, o.experts, {}, clock);
  const int64_t rows = o.tokens * o.choices / o.experts, all = rows * o.experts;
  const at::Tensor row_RH = at::randn({all, o.hidden}).to(layer.options);
  const at::Tensor gate_up_RJ = at::empty({all, 2 * o.intermediate}, layer.options);
  const at::Tensor active_RI = at::randn({all, o.intermediate}).to(layer.options), out_RH = at::empty_like(row_RH);
  std::vector<double> of_layer, of_products;
  for (int64_t round = -2; round < o.rounds; ++round) {  // alternating; the first two warm up
    const double products = seconds_of([&] { run_products(layer, row_RH, gate_up_RJ, active_RI, out_RH, rows); });
    const double whole = seconds_of([&] { run_layer(experts, layer); });
    if (round < 0) continue;
    of_products.push_back(products);
    of_layer.push_back(whole);
  }
  const double flops = 18.0 * static_cast<double>(all * o.hidden * o.intermediate);
  nlohmann::ordered_json result = {{"tokens", o.tokens},
                                   {"experts", o.experts},
                                   {"choices", o.choices},
                                   {"hidden", o.hidden},
                                   {"intermediate", o.intermediate},
                                   {"dtype", o.bf16 ? "bf16" : "fp32"},
                                   {"rows_per_expert", rows},
                                   {"layer_seconds", summary(of_layer)},
                                   {"products_seconds", summary(of_products)}};
  result["product_gflops"] = flops / result["products_seconds"]["median"].get<double>() / 1e9;
  result["fraction_of_product_rate"] =
      result["products_seconds"]["median"].get<double>() / result["layer_seconds"]["median"].get<double>();
  return result;
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
  app.add_flag("--bf16", options.bf16);
  CLI11_PARSE(app, argc, argv);
  conclave::install_counting_allocator();  // and with it the pool of large blocks, as the program has
  std::cout << conclave::measure(options).dump() << std::endl;
  return 0;
}
