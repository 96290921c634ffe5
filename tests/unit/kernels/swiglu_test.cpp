#include "kernels/swiglu.h"

#include "kernel_test.h"

namespace conclave {
namespace {

struct Case {
  at::Tensor gate_up, weight, grad_out;
};

Case make_case(int64_t rows, int64_t intermediate, at::ScalarType dtype) {
  Case c{random_tensor({rows, 2 * intermediate}, dtype) * 3, at::rand({rows}),
         random_tensor({rows, intermediate}, dtype)};
  return c;
}

at::Tensor expression(const at::Tensor& gate_up, const at::Tensor& weight) {
  const auto parts = gate_up.chunk(2, 1);
  return parts[0] / (1 + at::exp(-parts[0])) * parts[1] * weight.unsqueeze(1);
}

struct Results {
  at::Tensor out, grad_gate_up, activation, grad_weight;
};

Results reference_in_double(const Case& c) {
  const at::Tensor gate_up = c.gate_up.to(at::kDouble), weight = c.weight.to(at::kDouble);
  const at::Tensor grad_out = c.grad_out.to(at::kDouble);
  Results r{garbage(grad_out.sizes(), at::kDouble), garbage(gate_up.sizes(), at::kDouble),
            garbage(grad_out.sizes(), at::kDouble), garbage(weight.sizes(), at::kDouble)};
  reference::swiglu_forward(r.out, gate_up, weight);
  reference::swiglu_backward(r.grad_gate_up, r.activation, r.grad_weight, grad_out, gate_up, weight);
  return r;
}

Results compute(const Case& c) {
  const at::ScalarType dtype = c.gate_up.scalar_type();
  Results r{garbage(c.grad_out.sizes(), dtype), garbage(c.gate_up.sizes(), dtype), garbage(c.grad_out.sizes(), dtype),
            garbage(c.weight.sizes())};
  swiglu_forward(r.out, c.gate_up, c.weight);
  swiglu_backward(r.grad_gate_up, r.activation, r.grad_weight, c.grad_out, c.gate_up, c.weight);
  return r;
}

// Oracle: autograd over the formula in double. Tolerance: a few roundings of double.
TEST(SwigluReference, equals_autograd) {
  const Case c = make_case(5, 7, at::kDouble);
  const at::Tensor gate_up = leaf(c.gate_up), weight = leaf(c.weight);
  const at::Tensor out = expression(gate_up, weight);
  const std::vector<at::Tensor> grads = gradients(out, c.grad_out, {gate_up, weight});
  const Results r = reference_in_double(c);
  expect_close("out", r.out, out, {1e-13, 1e-15});
  expect_close("activation", r.activation, out, {1e-13, 1e-15});
  expect_close("grad_gate_up", r.grad_gate_up, grads[0], {1e-13, 1e-14});
  expect_close("grad_weight", r.grad_weight, grads[1], {1e-13, 1e-13});
}

class Swiglu : public SimdTest {};

// Oracle: the reference in double on the same inputs. Tolerances: the product's factors err by a few eps (exp: 2,
// division, four products: 8 in all); the slope of silu cancels where it crosses zero, so its error counts against
// |grad_out * weight * up| <= 80 here; a sum of I terms in running vectors errs by at most (I / 4 + 8) eps of the sum
// of magnitudes. All of it before one rounding to the dtype.
TEST_P(Swiglu, equals_reference) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t rows : {0, 1, 3, 33}) {
      for (const int64_t intermediate : {1, 7, 16, 17, 33, 64, 257}) {
        const Case c = make_case(rows, intermediate, dtype);
        const Results expected = reference_in_double(c), actual = compute(c);
        const double stored = rounding(dtype);
        expect_close("out", actual.out, expected.out, {stored + 8 * eps_fp32, 1e-30});
        expect_close("activation", actual.activation, expected.out, {stored + 8 * eps_fp32, 1e-30});
        expect_close("grad_gate_up", actual.grad_gate_up, expected.grad_gate_up, {stored, 8 * eps_fp32 * 80});
        const at::Tensor magnitude = (c.grad_out.to(at::kDouble) * expected.out).abs().sum(1) / c.weight;
        const double largest = rows == 0 ? 0 : magnitude.max().item<double>();
        expect_close("grad_weight", actual.grad_weight, expected.grad_weight,
                     {0, (intermediate / 4.0 + 8) * eps_fp32 * largest});
      }
    }
  }
}

// The header's permission: grad_gate_up may be gate_up, activation may be grad_out.
TEST_P(Swiglu, outputs_may_be_inputs) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    Case c = make_case(9, 37, dtype);
    if (dtype == at::kDouble) c.weight = c.weight.to(at::kDouble);
    at::Tensor grad_gate_up = at::empty_like(c.gate_up), activation = at::empty_like(c.grad_out);
    at::Tensor grad_weight = at::empty_like(c.weight), grad_weight_again = at::empty_like(c.weight);
    swiglu_backward(grad_gate_up, activation, grad_weight, c.grad_out, c.gate_up, c.weight);
    swiglu_backward(c.gate_up, c.grad_out, grad_weight_again, c.grad_out, c.gate_up, c.weight);
    expect_identical("grad_gate_up", c.gate_up, grad_gate_up);
    expect_identical("activation", c.grad_out, activation);
    expect_identical("grad_weight", grad_weight_again, grad_weight);
  }
}

TEST_P(Swiglu, saturates_without_overflow_and_keeps_not_a_number) {
  const float infinity = std::numeric_limits<float>::infinity();
  const at::Tensor gate_up =
      at::tensor({-1000.0f, -90.0f, 90.0f, 1000.0f, NAN, 2.0f, 2.0f, 2.0f, 2.0f, 2.0f}).view({1, 10});
  at::Tensor out = garbage({1, 5});
  swiglu_forward(out, gate_up, at::ones({1}));
  expect_close("out", out.narrow(1, 0, 4), at::tensor({0.0f, 0.0f, 180.0f, 2000.0f}).view({1, 4}), {eps_fp32, 1e-30});
  EXPECT_TRUE(std::isnan(out[0][4].item<float>()));
  EXPECT_LT(out[0][3].item<float>(), infinity);
}

TEST_P(Swiglu, does_not_depend_on_threads) {
  const Case c = make_case(300, 513, at::kFloat);
  expect_same_for_any_threads([&] {
    const Results r = compute(c);
    return std::vector<at::Tensor>{r.out, r.grad_gate_up, r.activation, r.grad_weight};
  });
}

CONCLAVE_SIMD_TESTS(Swiglu);

}  // namespace
}  // namespace conclave
