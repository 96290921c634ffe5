// Experts with adapters beside their matrices: of whole matrices or of their halves, own experts and guests, one after
// the other and grouped.
//
// Oracle: autograd in double over a plain loop, with the dense update W + scale * B A made.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "device/device.h"
#include "moe/experts.h"
#include "moe/grouped_experts.h"
#include "unit/moe/plain_experts.h"

namespace conclave {
namespace {

using testing::expect_near;
using testing::seed;

constexpr double scale = 1.5;

// A and B of an adapter, and the first of its outputs.
struct Factors {
  at::Tensor a, b;
  int64_t first = 0;
};

struct Case {
  bool input_major;
  std::vector<int64_t> rows_per_expert;
  at::Tensor row_RH, weight_R, gate_up, down, grad_RH;
  std::vector<Factors> of_gate_up, of_down;
};

Case make_case(bool input_major, bool halves, const std::vector<int64_t>& rows_per_expert, at::ScalarType dtype) {
  at::manual_seed(seed);
  constexpr int64_t hidden = 24, intermediate = 16, rank = 8;
  const auto experts = static_cast<int64_t>(rows_per_expert.size());
  int64_t rows = 0;
  for (const int64_t count : rows_per_expert) rows += count;
  const auto normal = [&](at::IntArrayRef sizes, double deviation) { return (at::randn(sizes) * deviation).to(dtype); };
  const auto factors = [&](int64_t inputs, int64_t outputs, int64_t first) {
    return Factors{normal({experts, rank, inputs}, 0.3), normal({experts, outputs, rank}, 0.3), first};
  };
  const auto matrix = [&](int64_t outputs, int64_t inputs) {
    return input_major ? normal({experts, inputs, outputs}, 0.2) : normal({experts, outputs, inputs}, 0.2);
  };
  Case c{input_major,
         rows_per_expert,
         normal({rows, hidden}, 1),
         at::rand({rows}),
         matrix(2 * intermediate, hidden),
         matrix(hidden, intermediate),
         normal({rows, hidden}, 1),
         {},
         {factors(intermediate, hidden, 0)}};
  if (halves)
    c.of_gate_up = {factors(hidden, intermediate, 0), factors(hidden, intermediate, intermediate)};
  else
    c.of_gate_up = {factors(hidden, 2 * intermediate, 0)};
  return c;
}

// x [R,M] times the merged matrix of an expert.
at::Tensor product(const at::Tensor& x_RM, const at::Tensor& matrices, const std::vector<Factors>& adapters,
                   bool input_major, int64_t expert) {
  at::Tensor y = x_RM.matmul(input_major ? matrices[expert] : matrices[expert].t());
  for (const Factors& adapter : adapters) {
    const at::Tensor update = scale * adapter.b[expert].matmul(adapter.a[expert]);  // [N,M]
    const int64_t behind = y.size(1) - adapter.first - update.size(0);
    y = y + at::constant_pad_nd(x_RM.matmul(update.t()), {adapter.first, behind});
  }
  return y;
}

struct Answer {
  at::Tensor out_RH;
  std::vector<at::Tensor> gradients;  // of rows, routing weights, then A and B of each adapter
};

Answer plainly(Case c) {
  std::vector<at::Tensor*> all{&c.row_RH, &c.weight_R};
  for (std::vector<Factors>* adapters : {&c.of_gate_up, &c.of_down})
    for (Factors& adapter : *adapters) all.insert(all.end(), {&adapter.a, &adapter.b});
  for (at::Tensor* tensor : all) *tensor = tensor->detach().to(at::kDouble).clone().requires_grad_();
  c.gate_up = c.gate_up.to(at::kDouble);
  c.down = c.down.to(at::kDouble);
  std::vector<at::Tensor> outs, inputs;
  for (const at::Tensor* tensor : all) inputs.push_back(*tensor);
  int64_t begin = 0;
  for (size_t e = 0; e < c.rows_per_expert.size(); ++e) {
    const auto expert = static_cast<int64_t>(e);
    const int64_t rows = c.rows_per_expert[e];
    const auto halves =
        product(c.row_RH.narrow(0, begin, rows), c.gate_up, c.of_gate_up, c.input_major, expert).chunk(2, 1);
    const at::Tensor out = product(at::silu(halves[0]) * halves[1], c.down, c.of_down, c.input_major, expert);
    outs.push_back(out * c.weight_R.narrow(0, begin, rows).unsqueeze(1));
    begin += rows;
  }
  const at::Tensor out = at::cat(outs);
  return {out.detach(), torch::autograd::grad({out}, inputs, {c.grad_RH.to(at::kDouble)})};
}

// The weights of a case, whose last `guests` experts are another rank's, and room for the adapters' gradients.
struct Parts {
  ExpertWeights weights;
  ExpertGradients gradients;
  std::vector<at::Tensor> gradient_tensors;
};

Parts parts_of(const Case& c, int64_t guests, bool accumulate) {
  const int64_t own = c.gate_up.size(0) - guests;
  const auto first = [&](const at::Tensor& all) { return all.narrow(0, 0, own); };
  const auto last = [&](const at::Tensor& all) { return guests > 0 ? all.narrow(0, own, guests) : at::Tensor(); };
  Parts p;
  p.weights = {first(c.gate_up), first(c.down), last(c.gate_up), last(c.down)};
  if (c.input_major) p.weights.form.matrices = ExpertMatrices::input_major;
  const auto add = [&](const std::vector<Factors>& adapters, std::vector<ExpertLowRank>& to,
                       std::vector<ExpertLowRankGradients>& gradients) {
    for (const Factors& adapter : adapters) {
      to.push_back({.a_LPM = first(adapter.a),
                    .b_LNP = first(adapter.b),
                    .guest_a_GPM = last(adapter.a),
                    .guest_b_GNP = last(adapter.b),
                    .first = adapter.first,
                    .scale = scale});
      const auto room = [&](const at::Tensor& of) { return at::full(of.sizes(), accumulate ? 1.0 : 1e30, at::kFloat); };
      const at::Tensor a = room(adapter.a), b = room(adapter.b);
      gradients.push_back(
          {{first(a), accumulate}, {first(b), accumulate}, {last(a), accumulate}, {last(b), accumulate}});
      p.gradient_tensors.insert(p.gradient_tensors.end(), {a, b});
    }
  };
  add(c.of_gate_up, p.weights.gate_up_low_rank, p.gradients.gate_up_low_rank);
  add(c.of_down, p.weights.down_low_rank, p.gradients.down_low_rank);
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
      for (size_t i = 0; i < p.gradient_tensors.size(); ++i)
        expect_near(i % 2 == 0 ? "gradient of A" : "gradient of B", p.gradient_tensors[i] - (accumulate ? 1.0 : 0.0),
                    expected.gradients[2 + i], relative);
    }
}

const std::vector<std::vector<int64_t>>& row_counts() {
  static const std::vector<std::vector<int64_t>> values = {
      {3, 5, 1}, {0, 7, 0, 2}, {9}, {0, 0, 40}, {0, 0}, {1, 0}, {cpu_facts.expert_chunk_rows + 30, 1, 2}};
  return values;
}

// Tolerance: as in expert_forms_test.cpp.
TEST(ExpertLowRank, equals_the_dense_update_in_fp32) {
  for (const bool input_major : {false, true})
    for (const bool halves : {false, true})
      for (const auto& rows : row_counts())
        for (const int64_t guests : {0, 1}) {
          if (guests == static_cast<int64_t>(rows.size())) continue;
          const Case c = make_case(input_major, halves, rows, at::kFloat);
          SCOPED_TRACE(fmt::format("seed {}: input-major {}, halves {}, {} experts, {} guests", seed, input_major,
                                   halves, rows.size(), guests));
          expect_answer(c, experts_forward, experts_backward, guests, (256 + c.row_RH.size(0)) / 8388608.0);
        }
}

TEST(ExpertLowRank, equals_the_dense_update_in_bf16_one_by_one_and_grouped) {
  for (const bool input_major : {false, true})
    for (const auto& rows : row_counts()) {
      if (rows[0] > cpu_facts.expert_chunk_rows) continue;
      const Case c = make_case(input_major, /*halves=*/false, rows, at::kBFloat16);
      SCOPED_TRACE(fmt::format("seed {}: input-major {}, {} experts", seed, input_major, rows.size()));
      constexpr double relative = 6.0 / 256;  // two more roundings one after the other than without adapters
      expect_answer(c, experts_forward, experts_backward, 0, relative);
      if (c.row_RH.size(0) > 0) expect_answer(c, grouped_experts_forward, grouped_experts_backward, 0, relative);
    }
}

}  // namespace
}  // namespace conclave
