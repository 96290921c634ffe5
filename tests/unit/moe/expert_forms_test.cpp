// Experts of every form: matrices by rows of outputs or of inputs, SwiGLU or the clamped one, with biases or without,
// whole or partly guests of another rank; one after the other, grouped, and in fp8.
//
// Oracle: autograd in double over a plain loop over rows.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "device/device.h"
#include "moe/experts.h"
#include "moe/fp8_experts.h"
#include "moe/grouped_experts.h"
#include "unit/moe/plain_experts.h"

namespace conclave {
namespace {

using testing::expect_near;
using testing::seed;

// Between two bf16 values: rounding what is compared with it does not carry it to the other side, where its derivative
// is another.
constexpr double limit = 7 - 1.0 / 64;

struct Form {
  bool input_major, clamped, biased;
};

std::vector<Form> forms() {
  std::vector<Form> all;
  for (const bool input_major : {false, true})
    for (const bool clamped : {false, true})
      for (const bool biased : {false, true}) all.push_back({input_major, clamped, biased});
  return all;
}

std::string print(const Form& form) {
  return std::string(form.input_major ? "input-major" : "output-major") + (form.clamped ? " clamped" : " swiglu") +
         (form.biased ? " biased" : "");
}

// All experts' parameters, rows and the gradient of the output.
struct Case {
  Form form;
  std::vector<int64_t> rows_per_expert;
  at::Tensor row_RH, weight_R, gate_up, down, gate_up_bias_LJ, down_bias_LH, grad_RH;

  std::vector<at::Tensor> inputs() const {
    std::vector<at::Tensor> all{row_RH, weight_R, gate_up, down};
    if (form.biased) all.insert(all.end(), {gate_up_bias_LJ, down_bias_LH});
    return all;
  }
};

Case make_case(const Form& form, const std::vector<int64_t>& rows_per_expert, int64_t hidden, int64_t intermediate,
               at::ScalarType dtype) {
  at::manual_seed(seed);
  const auto experts = static_cast<int64_t>(rows_per_expert.size());
  int64_t rows = 0;
  for (const int64_t count : rows_per_expert) rows += count;
  const auto normal = [&](at::IntArrayRef sizes, double deviation) { return (at::randn(sizes) * deviation).to(dtype); };
  const int64_t wide = 2 * intermediate;
  Case c{form, rows_per_expert, normal({rows, hidden}, 1), at::rand({rows}), {}, {}, {}, {}, normal({rows, hidden}, 1)};
  // Large enough that some of gate and up are clamped.
  const double deviation = form.clamped ? 4 / std::sqrt(static_cast<double>(hidden)) : 0.2;
  c.gate_up = normal(form.input_major ? at::IntArrayRef{experts, hidden, wide} : at::IntArrayRef{experts, wide, hidden},
                     deviation);
  c.down = normal(form.input_major ? at::IntArrayRef{experts, intermediate, hidden}
                                   : at::IntArrayRef{experts, hidden, intermediate},
                  0.2);
  if (form.biased) {
    c.gate_up_bias_LJ = normal({experts, wide}, 1);
    c.down_bias_LH = normal({experts, hidden}, 1);
  }
  return c;
}

at::Tensor activation_of(const at::Tensor& gate_up_RJ, bool clamped) {
  if (!clamped) {
    const auto parts = gate_up_RJ.chunk(2, 1);
    return at::silu(parts[0]) * parts[1];
  }
  const at::Tensor gate = gate_up_RJ.slice(1, 0, gate_up_RJ.size(1), 2).clamp_max(limit);
  const at::Tensor up = gate_up_RJ.slice(1, 1, gate_up_RJ.size(1), 2).clamp(-limit, limit);
  return (up + 1) * gate * at::sigmoid(1.702 * gate);
}

struct Answer {
  at::Tensor out_RH;
  std::vector<at::Tensor> gradients;  // of the case's inputs
};

Answer plainly(const Case& of) {
  Case c = of;
  for (at::Tensor* tensor :
       {&c.row_RH, &c.weight_R, &c.gate_up, &c.down, &c.gate_up_bias_LJ, &c.down_bias_LH, &c.grad_RH})
    if (tensor->defined()) *tensor = tensor->detach().to(at::kDouble).clone().requires_grad_();
  std::vector<at::Tensor> outs;
  int64_t begin = 0;
  for (size_t e = 0; e < c.rows_per_expert.size(); ++e) {
    const auto expert = static_cast<int64_t>(e);
    const int64_t rows = c.rows_per_expert[e];
    const auto matrix = [&](const at::Tensor& all) { return c.form.input_major ? all[expert] : all[expert].t(); };
    at::Tensor gate_up = c.row_RH.narrow(0, begin, rows).matmul(matrix(c.gate_up));
    if (c.form.biased) gate_up = gate_up + c.gate_up_bias_LJ[expert];
    at::Tensor out = activation_of(gate_up, c.form.clamped).matmul(matrix(c.down));
    if (c.form.biased) out = out + c.down_bias_LH[expert];
    outs.push_back(out * c.weight_R.narrow(0, begin, rows).unsqueeze(1));
    begin += rows;
  }
  const at::Tensor out = at::cat(outs);
  return {out.detach(), torch::autograd::grad({out}, c.inputs(), {c.grad_RH.detach()})};
}

// The last `guests` experts are another rank's.
struct Parts {
  ExpertWeights weights;
  ExpertGradients gradients;
  std::vector<at::Tensor> gradient_tensors;  // in the order of the inputs, from the third on
};

Parts parts_of(const Case& c, int64_t guests, bool accumulate) {
  const int64_t own = c.gate_up.size(0) - guests;
  const auto first = [&](const at::Tensor& all) { return all.defined() ? all.narrow(0, 0, own) : all; };
  const auto last = [&](const at::Tensor& all) {
    return all.defined() && guests > 0 ? all.narrow(0, own, guests) : at::Tensor();
  };
  Parts p;
  p.weights = {first(c.gate_up), first(c.down), last(c.gate_up), last(c.down)};
  p.weights.form.matrices = c.form.input_major ? ExpertMatrices::input_major : ExpertMatrices::output_major;
  if (c.form.clamped) p.weights.form.clamped = ClampedSwiglu{.limit = limit};
  p.weights.gate_up_bias_LJ = first(c.gate_up_bias_LJ);
  p.weights.down_bias_LH = first(c.down_bias_LH);
  p.weights.guest_gate_up_bias_GJ = last(c.gate_up_bias_LJ);
  p.weights.guest_down_bias_GH = last(c.down_bias_LH);
  const auto room = [&](const at::Tensor& of) {
    return of.defined() ? at::full(of.sizes(), accumulate ? 1.0 : 1e30, at::kFloat) : at::Tensor();
  };
  const at::Tensor gate_up = room(c.gate_up), down = room(c.down), gate_up_bias = room(c.gate_up_bias_LJ),
                   down_bias = room(c.down_bias_LH);
  p.gradients = {
      {first(gate_up), accumulate}, {first(down), accumulate}, {last(gate_up), accumulate}, {last(down), accumulate}};
  p.gradients.gate_up_bias_LJ = {first(gate_up_bias), accumulate};
  p.gradients.down_bias_LH = {first(down_bias), accumulate};
  p.gradients.guest_gate_up_bias_GJ = {last(gate_up_bias), accumulate};
  p.gradients.guest_down_bias_GH = {last(down_bias), accumulate};
  p.gradient_tensors = {gate_up, down};
  if (c.form.biased) p.gradient_tensors.insert(p.gradient_tensors.end(), {gate_up_bias, down_bias});
  return p;
}

template <class Forward, class Backward>
void expect_answer(const Case& c, const Forward& forward, const Backward& backward, int64_t guests, double relative) {
  const Answer expected = plainly(c);
  for (const bool keep : {true, false})
    for (const bool accumulate : {true, false}) {
      Parts p = parts_of(c, guests, accumulate);
      const ExpertRows rows{c.row_RH.clone(), c.weight_R};
      const ExpertOutput output =
          forward(rows, c.rows_per_expert, p.weights, keep ? PreActivation::kept : PreActivation::repeated);
      expect_near("output", output.row_RH, expected.out_RH, relative);
      const ExpertRows grad =
          backward(c.grad_RH.clone(), rows, output.gate_up_RJ, c.rows_per_expert, p.weights, p.gradients);
      expect_near("gradient of the rows", grad.row_RH, expected.gradients[0], relative);
      expect_near("gradient of the routing weights", grad.weight_R, expected.gradients[1], relative);
      const char* names[] = {"gradient of gate_up", "gradient of down", "gradient of gate_up's bias",
                             "gradient of down's bias"};
      for (size_t i = 0; i < p.gradient_tensors.size(); ++i)
        expect_near(names[i], p.gradient_tensors[i] - (accumulate ? 1.0 : 0.0), expected.gradients[2 + i], relative);
    }
}

const std::vector<std::vector<int64_t>>& row_counts() {
  static const std::vector<std::vector<int64_t>> values = {
      {3, 5, 1}, {0, 7, 0, 2}, {9}, {0, 0, 40}, {0, 0}, {1, 0}, {cpu_facts.expert_chunk_rows + 30, 1, 2}};
  return values;
}

// Tolerance: sums of H + 3I terms and of the rows of an expert, each rounded once; what accumulates does so from 1. One
// row alone has but one routing weight, whose gradient's terms, up to 56 each when clamped, may cancel: four times
// that.
TEST(ExpertForms, equal_a_plain_loop_in_fp32) {
  for (const Form& form : forms())
    for (const auto& rows : row_counts())
      for (const int64_t guests : {0, 1}) {
        if (guests == static_cast<int64_t>(rows.size())) continue;
        const Case c = make_case(form, rows, /*hidden=*/13, /*intermediate=*/7, at::kFloat);
        SCOPED_TRACE(fmt::format("seed {}: {}, {} experts, {} guests", seed, print(form), rows.size(), guests));
        expect_answer(c, experts_forward, experts_backward, guests, (256 + c.row_RH.size(0)) / 8388608.0);
      }
}

constexpr double bf16_rounding = 1.0 / 256;

// Tolerance: what lies between the products is rounded to bf16 on the way, four times one after the other at most; a
// clamped activation of pre-activations of 4 and more multiplies what was rounded by up to twice its own size.
TEST(ExpertForms, equal_a_plain_loop_in_bf16_one_by_one_and_grouped) {
  for (const Form& form : forms())
    for (const auto& rows : row_counts()) {
      if (rows[0] > cpu_facts.expert_chunk_rows) continue;
      const Case c = make_case(form, rows, /*hidden=*/24, /*intermediate=*/16, at::kBFloat16);
      SCOPED_TRACE(fmt::format("seed {}: {}, {} experts", seed, print(form), rows.size()));
      const double relative = (form.clamped ? 8 : 4) * bf16_rounding;
      expect_answer(c, experts_forward, experts_backward, 0, relative);
      if (c.row_RH.size(0) > 0) expect_answer(c, grouped_experts_forward, grouped_experts_backward, 0, relative);
    }
}

// Tolerance: operands have 4 bits (e4m3) or 3 (e5m2), and three products follow one another; the mean error is smaller.
TEST(ExpertForms, equal_a_plain_loop_in_fp8_within_its_rounding) {
  for (const Form& form : forms()) {
    if (form.clamped) continue;  // amplifies what fp8 rounds
    const Case c = make_case(form, {20, 0, 33}, /*hidden=*/128, /*intermediate=*/128, at::kBFloat16);
    SCOPED_TRACE(print(form));
    expect_answer(c, fp8_experts_forward, fp8_experts_backward, 0, 0.2);
  }
}

}  // namespace
}  // namespace conclave
