#include "kernels/clamped_swiglu.h"

#include "kernel_test.h"

namespace conclave {
namespace {

constexpr ClampedSwiglu gpt_oss;

struct Case {
  at::Tensor gate_up, weight, grad_out;
};

// A tenth of the values is beyond the limit.
Case make_case(int64_t rows, int64_t intermediate, at::ScalarType dtype) {
  return {random_tensor({rows, 2 * intermediate}, dtype) * 4, at::rand({rows}),
          random_tensor({rows, intermediate}, dtype)};
}

// As Transformers' gpt-oss writes it (GptOssExperts), with the weight.
at::Tensor expression(const at::Tensor& gate_up, const at::Tensor& weight) {
  const at::Tensor gate = gate_up.slice(1, 0, gate_up.size(1), 2).clamp_max(7.0);
  const at::Tensor up = gate_up.slice(1, 1, gate_up.size(1), 2).clamp(-7.0, 7.0);
  return (up + 1) * (gate * at::sigmoid(gate * 1.702)) * weight.unsqueeze(1);
}

struct Results {
  at::Tensor out, grad_gate_up, activation, grad_weight;
};

Results garbage_for(const Case& c) {
  const at::ScalarType dtype = c.gate_up.scalar_type();
  return {garbage(c.grad_out.sizes(), dtype), garbage(c.gate_up.sizes(), dtype), garbage(c.grad_out.sizes(), dtype),
          garbage(c.weight.sizes(), c.weight.scalar_type())};
}

Results reference_in_double(const Case& of) {
  const Case c{of.gate_up.to(at::kDouble), of.weight.to(at::kDouble), of.grad_out.to(at::kDouble)};
  Results r = garbage_for(c);
  reference::clamped_swiglu_forward(r.out, c.gate_up, c.weight, gpt_oss);
  reference::clamped_swiglu_backward(r.grad_gate_up, r.activation, r.grad_weight, c.grad_out, c.gate_up, c.weight,
                                     gpt_oss);
  return r;
}

Results compute(const Case& c) {
  Results r = garbage_for(c);
  clamped_swiglu_forward(r.out, c.gate_up, c.weight, gpt_oss);
  clamped_swiglu_backward(r.grad_gate_up, r.activation, r.grad_weight, c.grad_out, c.gate_up, c.weight, gpt_oss);
  return r;
}

// Oracle: autograd over Transformers' formula in double. Tolerance: a few roundings of double.
TEST(ClampedSwigluReference, equals_autograd) {
  const Case c = make_case(9, 17, at::kDouble);
  ASSERT_TRUE((c.gate_up.abs() > 7).any().item<bool>());
  const at::Tensor gate_up = leaf(c.gate_up), weight = leaf(c.weight);
  const at::Tensor out = expression(gate_up, weight);
  const std::vector<at::Tensor> grads = gradients(out, c.grad_out, {gate_up, weight});
  const Results r = reference_in_double(c);
  expect_close("out", r.out, out, {1e-13, 1e-15});
  expect_close("activation", r.activation, out, {1e-13, 1e-15});
  expect_close("grad_gate_up", r.grad_gate_up, grads[0], {1e-13, 1e-14});
  expect_close("grad_weight", r.grad_weight, grads[1], {1e-13, 1e-13});
}

class ClampedSwigluPaths : public SimdTest {};

// Oracle: the reference in double on the same inputs. Tolerances: the factors err by a few eps (exp: 2, and 12 more of
// its argument, up to 12; five products and a division: 20 in all); up + 1 cancels where up is -1, and the slope where
// it crosses zero: then the error counts against |grad_out * weight * gate * 8| <= 5 * 7 * 8. Before one rounding.
TEST_P(ClampedSwigluPaths, equal_the_reference) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int64_t rows : {0, 1, 3, 33})
      for (const int64_t intermediate : {1, 7, 16, 17, 33, 64, 257}) {
        SCOPED_TRACE(testing::Message() << rows << " x " << intermediate << " of " << dtype);
        const Case c = make_case(rows, intermediate, dtype);
        const Results expected = reference_in_double(c), actual = compute(c);
        const double stored = rounding(dtype), absolute = 20 * eps_fp32 * 280;
        expect_close("out", actual.out, expected.out, {stored + 20 * eps_fp32, 20 * eps_fp32 * 7});
        expect_identical("activation", actual.activation, actual.out);
        expect_close("grad_gate_up", actual.grad_gate_up, expected.grad_gate_up, {stored, absolute});
        expect_close("grad_weight", actual.grad_weight, expected.grad_weight,
                     {0, (static_cast<double>(intermediate) / 4 + 20) * eps_fp32 * 280 * 2});
      }
}

// The header's permission: grad_gate_up may be gate_up, activation may be grad_out.
TEST_P(ClampedSwigluPaths, outputs_may_be_inputs) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    Case c = make_case(9, 37, dtype);
    if (dtype == at::kDouble) c.weight = c.weight.to(at::kDouble);
    Results apart = garbage_for(c), over = garbage_for(c);
    clamped_swiglu_backward(apart.grad_gate_up, apart.activation, apart.grad_weight, c.grad_out, c.gate_up, c.weight,
                            gpt_oss);
    clamped_swiglu_backward(c.gate_up, c.grad_out, over.grad_weight, c.grad_out, c.gate_up, c.weight, gpt_oss);
    expect_identical("grad_gate_up", c.gate_up, apart.grad_gate_up);
    expect_identical("activation", c.grad_out, apart.activation);
    expect_identical("grad_weight", over.grad_weight, apart.grad_weight);
  }
}

// Exactly at the limit a value passes and so does its gradient, as with torch.clamp; beyond it neither.
TEST_P(ClampedSwigluPaths, clamp_at_the_limit_and_keep_not_a_number) {
  const at::Tensor gate_up =
      at::tensor({7.0f, 7.0f, 7.5f, -7.5f, -1000.0f, 1000.0f, NAN, 1.0f, 1.0f, NAN, 1000.0f, -7.0f}).view({1, 12});
  const Case c{gate_up, at::ones({1}), at::ones({1, 6})};
  const Results r = compute(c);
  const float at_limit = 7.0f / (1 + std::exp(-1.702f * 7));
  const at::Tensor expected = at::tensor({8 * at_limit, -6 * at_limit, 0.0f}).view({1, 3});
  expect_close("out", r.out.narrow(1, 0, 3), expected, {20 * eps_fp32, 1e-30});
  EXPECT_TRUE(r.out[0][3].isnan().item<bool>());
  EXPECT_TRUE(r.out[0][4].isnan().item<bool>());
  EXPECT_NE(r.grad_gate_up[0][0].item<float>(), 0);
  EXPECT_NE(r.grad_gate_up[0][1].item<float>(), 0);
  for (const int64_t clamped : {2, 3, 5, 10}) EXPECT_EQ(r.grad_gate_up[0][clamped].item<float>(), 0) << clamped;
  EXPECT_NE(r.grad_gate_up[0][11].item<float>(), 0);
}

TEST_P(ClampedSwigluPaths, do_not_depend_on_threads) {
  const Case c = make_case(300, 513, at::kFloat);
  expect_same_for_any_threads([&] {
    const Results r = compute(c);
    return std::vector<at::Tensor>{r.out, r.grad_gate_up, r.activation, r.grad_weight};
  });
}

CONCLAVE_SIMD_TESTS(ClampedSwigluPaths);

}  // namespace
}  // namespace conclave
