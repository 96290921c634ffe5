#include "kernels/attention.h"

#include <cmath>

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

struct Results {
  at::Tensor out, logsumexp, grad_qkv;
};

int64_t tokens(const AttentionShape& s) {
  return s.batch * s.sequence;
}
int64_t columns(const AttentionShape& s) {
  return (s.heads + 2 * s.kv_heads) * s.head_dim;
}

std::string describe(const AttentionShape& s) {
  return "batch " + std::to_string(s.batch) + ", sequence " + std::to_string(s.sequence) + ", heads " +
         std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " of " + std::to_string(s.head_dim) +
         ", window " + std::to_string(s.window.value_or(0));
}

// Attention head by head with repeated key/value heads and an explicit mask, as in a textbook; differentiable. Returns
// out [T, N] and logsumexp.
std::pair<at::Tensor, at::Tensor> textbook(const at::Tensor& qkv, const AttentionShape& s) {
  const auto heads = [&](int64_t first, int64_t count) {
    return qkv.narrow(1, first * s.head_dim, count * s.head_dim)
        .reshape({s.batch, s.sequence, count, s.head_dim})
        .transpose(1, 2);
  };
  const int64_t group = s.heads / s.kv_heads;
  const at::Tensor query = heads(0, s.heads);
  const at::Tensor key = heads(s.heads, s.kv_heads).repeat_interleave(group, 1);
  const at::Tensor value = heads(s.heads + s.kv_heads, s.kv_heads).repeat_interleave(group, 1);
  at::Tensor visible = at::ones({s.sequence, s.sequence}, at::kBool).tril();
  if (s.window) visible = at::logical_and(visible, at::ones_like(visible).triu(1 - *s.window));
  const at::Tensor scores = (at::matmul(query, key.transpose(-2, -1)) / std::sqrt(static_cast<double>(s.head_dim)))
                                .masked_fill(at::logical_not(visible), -1e300);
  const at::Tensor out = at::matmul(at::softmax(scores, -1), value).transpose(1, 2).reshape({tokens(s), -1});
  return {out, at::logsumexp(scores, {-1})};
}

Results oracle(const at::Tensor& qkv, const at::Tensor& grad_out, const AttentionShape& shape) {
  const at::Tensor x = leaf(qkv);
  const auto [out, logsumexp] = textbook(x, shape);
  return {out, logsumexp, gradients(out, grad_out.to(at::kDouble), {x})[0]};
}

template <class Forward, class Backward>
Results run(const at::Tensor& qkv, const at::Tensor& grad_out, const AttentionShape& shape, const Forward& forward,
            const Backward& backward) {
  const at::ScalarType dtype = qkv.scalar_type(), wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
  Results r{garbage(grad_out.sizes(), dtype), garbage({shape.batch, shape.heads, shape.sequence}, wide),
            garbage(qkv.sizes(), dtype)};
  forward(r.out, r.logsumexp, qkv, shape);
  backward(r.grad_qkv, grad_out, r.out, r.logsumexp, qkv, shape);
  return r;
}

Results compute(const at::Tensor& qkv, const at::Tensor& grad_out, const AttentionShape& shape) {
  return run(qkv, grad_out, shape, attention_forward, attention_backward);
}

const std::vector<AttentionShape>& shapes() {
  static const std::vector<AttentionShape> values = {
      {1, 1, 1, 1, 8, {}},     {2, 7, 4, 2, 16, {}},   {3, 33, 6, 1, 40, {}},   {1, 257, 8, 8, 64, {}},
      {2, 65, 3, 3, 6, {}},    {1, 300, 4, 1, 32, {}}, {2, 17, 4, 2, 16, 1},    {2, 17, 4, 2, 16, 5},
      {1, 33, 4, 2, 16, 32},   {1, 33, 4, 2, 16, 33},  {1, 33, 4, 2, 16, 100},  {2, 300, 4, 2, 16, 130},
      {1, 1300, 4, 2, 16, {}}, {1, 401, 2, 1, 16, 7},  {1, 600, 2, 1, 16, 200}, {1, 1100, 2, 1, 8, 1000},
      {1, 256, 2, 1, 16, 128},
  };
  return values;
}

// Oracle: autograd over the textbook's form in double. Tolerance: sums of S terms in double.
TEST(AttentionReference, equals_autograd) {
  for (const AttentionShape& shape : shapes()) {
    if (shape.sequence > 300) continue;
    SCOPED_TRACE(describe(shape));
    const at::Tensor qkv = random_tensor({tokens(shape), columns(shape)}, at::kDouble);
    const at::Tensor grad_out = random_tensor({tokens(shape), shape.heads * shape.head_dim}, at::kDouble);
    const Results expected = oracle(qkv, grad_out, shape);
    const Results actual = run(qkv, grad_out, shape, reference::attention_forward, reference::attention_backward);
    expect_close("out", actual.out, expected.out, {1e-12, 1e-13});
    expect_close("logsumexp", actual.logsumexp, expected.logsumexp, {1e-12, 1e-13});
    expect_close("grad_qkv", actual.grad_qkv, expected.grad_qkv, {1e-12, 1e-12});
  }
}

// Oracle: autograd over the textbook's form in double on the same inputs.
// Tolerances, fp32: scores sum D products (up to 20 in all), so an exponential errs by 40 eps or so (ATen's approximate
// one by 20 more), and outputs and gradients, sums of products with it, by as much of the tensor's scale. bf16: ATen's
// exponential of bf16 errs by up to 2^-13, and so does the logsumexp; probabilities and gradients of scores are rounded
// to bf16 between products, and key/value gradients added up in bf16: some 8 roundings, of the scale of the tensor.
TEST(Attention, equals_autograd) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const AttentionShape& shape : shapes()) {
      SCOPED_TRACE(describe(shape));
      const at::Tensor qkv = random_tensor({tokens(shape), columns(shape)}, dtype);
      const at::Tensor grad_out = random_tensor({tokens(shape), shape.heads * shape.head_dim}, dtype);
      const Results expected = oracle(qkv, grad_out, shape), actual = compute(qkv, grad_out, shape);
      const bool fp32 = dtype == at::kFloat;
      const auto of_scale = [](double relative, const at::Tensor& t) {
        return Tolerance{0, relative * t.abs().max().item<double>()};
      };
      expect_close("logsumexp", actual.logsumexp, expected.logsumexp, {0, fp32 ? 60 * eps_fp32 : 1.0 / (1 << 13)});
      expect_close("out", actual.out, expected.out, of_scale(fp32 ? 60 * eps_fp32 : 4 * rounding(dtype), expected.out));
      expect_close("grad_qkv", actual.grad_qkv, expected.grad_qkv,
                   of_scale(fp32 ? 60 * eps_fp32 : 8 * rounding(dtype), expected.grad_qkv));
    }
  }
}

TEST(Attention, an_empty_batch_is_ordinary) {
  const AttentionShape shape{0, 9, 4, 2, 8, {}};
  const Results r = compute(at::empty({0, columns(shape)}), at::empty({0, 32}), shape);
  EXPECT_EQ(r.grad_qkv.numel(), 0);
}

TEST(Attention, does_not_depend_on_threads) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const AttentionShape& shape : {AttentionShape{1, 300, 4, 1, 32, {}}, AttentionShape{2, 300, 6, 2, 16, 140},
                                        AttentionShape{1, 700, 1, 1, 64, {}}}) {
      SCOPED_TRACE(describe(shape));
      const at::Tensor qkv = random_tensor({tokens(shape), columns(shape)}, dtype);
      const at::Tensor grad_out = random_tensor({tokens(shape), shape.heads * shape.head_dim}, dtype);
      expect_same_for_any_threads([&] {
        const Results r = compute(qkv, grad_out, shape);
        return std::vector<at::Tensor>{r.out, r.logsumexp, r.grad_qkv};
      });
    }
  }
}

TEST(AttentionEntry, refuses_what_does_not_fit) {
  const AttentionShape shape{1, 4, 4, 2, 8, {}};
  at::Tensor out = at::zeros({4, 32}), logsumexp = at::zeros({1, 4, 4});
  EXPECT_THROW(attention_forward(out, logsumexp, at::zeros({4, 63}), shape), InvariantError);
  AttentionShape uneven = shape;
  uneven.kv_heads = 3;
  EXPECT_THROW(attention_forward(out, logsumexp, at::zeros({4, 80}), uneven), InvariantError);
  AttentionShape blind = shape;
  blind.window = 0;
  EXPECT_THROW(attention_forward(out, logsumexp, at::zeros({4, 64}), blind), InvariantError);
}

}  // namespace
}  // namespace conclave
