// The experts of a layer as a plain loop in double over every token and choice: the oracle of all ways to dispatch.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdint>

namespace conclave::testing {

constexpr uint64_t seed = 42;

enum class Skew { spread, one_expert };

struct Shape {
  int64_t tokens, experts, top_k, hidden, intermediate;
  Skew skew = Skew::spread;
};

struct Problem {
  at::Tensor token_TH, residual_TH, weight_TK, expert_TK, gate_up_EJH, down_EHI, grad_TH;
};

inline Problem make_problem(const Shape& s) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](at::IntArrayRef sizes) { return at::randn(sizes, generator); };
  Problem p;
  p.token_TH = normal({s.tokens, s.hidden});
  p.residual_TH = normal({s.tokens, s.hidden});
  p.weight_TK = at::softmax(normal({s.tokens, s.top_k}), 1);
  p.expert_TK = at::empty({s.tokens, s.top_k}, at::kInt);
  for (int64_t t = 0; t < s.tokens; ++t)
    p.expert_TK[t].copy_(s.skew == Skew::one_expert ? at::arange(s.top_k, at::kInt).add(s.experts - s.top_k)
                                                    : at::randperm(s.experts, generator).narrow(0, 0, s.top_k));
  p.gate_up_EJH = normal({s.experts, 2 * s.intermediate, s.hidden}) * 0.3;
  p.down_EHI = normal({s.experts, s.hidden, s.intermediate}) * 0.3;
  p.grad_TH = normal({s.tokens, s.hidden});
  return p;
}

inline Problem in_double(Problem p) {
  for (at::Tensor* tensor : {&p.token_TH, &p.residual_TH, &p.weight_TK, &p.gate_up_EJH, &p.down_EHI, &p.grad_TH})
    *tensor = tensor->to(at::kDouble);
  return p;
}

struct Answer {
  at::Tensor out_TH, grad_token_TH, grad_weight_TK, grad_gate_up_EJH, grad_down_EHI;
};

// y = residual + sum_k down (silu(gate x) * (up x) * w_k), one (token, choice) after the other, and the chain rule
// backwards.
inline Answer plain_loop(const Problem& p) {
  Answer a{p.residual_TH.clone(), at::zeros_like(p.token_TH), at::zeros_like(p.weight_TK),
           at::zeros_like(p.gate_up_EJH), at::zeros_like(p.down_EHI)};
  const int64_t intermediate = p.down_EHI.size(2);
  for (int64_t t = 0; t < p.expert_TK.size(0); ++t)
    for (int64_t k = 0; k < p.expert_TK.size(1); ++k) {
      const int64_t expert = p.expert_TK[t][k].item<int32_t>();
      if (expert < 0) continue;  // dropped
      const at::Tensor x = p.token_TH[t], w = p.weight_TK[t][k], grad = p.grad_TH[t];
      const at::Tensor gate_IH = p.gate_up_EJH[expert].narrow(0, 0, intermediate);
      const at::Tensor up_IH = p.gate_up_EJH[expert].narrow(0, intermediate, intermediate);
      const at::Tensor gate = gate_IH.mv(x), up = up_IH.mv(x), down_HI = p.down_EHI[expert];
      const at::Tensor sigmoid = 1 / (1 + (-gate).exp()), silu = gate * sigmoid;
      a.out_TH[t] += down_HI.mv(silu * up * w);
      const at::Tensor grad_active = down_HI.t().mv(grad);
      const at::Tensor grad_gate = grad_active * up * w * (sigmoid + gate * sigmoid * (1 - sigmoid));
      const at::Tensor grad_up = grad_active * silu * w;
      a.grad_weight_TK[t][k] = (grad_active * silu * up).sum();
      a.grad_token_TH[t] += gate_IH.t().mv(grad_gate) + up_IH.t().mv(grad_up);
      a.grad_down_EHI[expert] += at::outer(grad, silu * up * w);
      a.grad_gate_up_EJH[expert] += at::outer(at::cat({grad_gate, grad_up}), x);
    }
  return a;
}

inline void expect_near(const char* name, const at::Tensor& actual, const at::Tensor& expected, double relative) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << name;
  if (expected.numel() == 0) return;
  const double scale = expected.abs().max().item<double>();
  EXPECT_LE((actual.to(at::kDouble) - expected).abs().max().item<double>(), relative * scale) << name;
}

// Of three products in a row of sums over H, I and (weights) the rows of an expert: each sum of n terms errs by at most
// n eps of its terms, whose size is that of the largest element.
inline double relative_error_bound(const Shape& s) {
  return static_cast<double>(s.hidden + 2 * s.intermediate + s.tokens + 16) / (1 << 23);
}

}  // namespace conclave::testing
