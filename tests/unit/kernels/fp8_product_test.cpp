// Oracle: the product in double of what the stored values stand for. Tolerance: Hopper's tensor cores add in fp8
// products with 14 bits or more before each block's sum goes to fp32 (DeepSeek-V3, section 3.3.2), so 2^-13 of the sum
// of magnitudes, twice; then one rounding to the dtype of the result, and one more where it is added to what is there.
#include "kernels/fp8_product.h"

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

void expect_product(const Fp8Matrix& a, const Fp8Matrix& b, int64_t rows) {
  const at::Tensor a_exact = dequantize(a).to(at::kDouble).narrow(0, 0, rows), b_exact = dequantize(b).to(at::kDouble);
  const at::Tensor exact = a_exact.matmul(b_exact.t()), magnitude = a_exact.abs().matmul(b_exact.abs().t());
  const double most = magnitude.numel() == 0 ? 0 : magnitude.max().item<double>();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const bool accumulate : {false, true}) {
      SCOPED_TRACE(testing::Message() << rows << " rows, " << b_exact.size(0) << " columns, sums over "
                                      << b_exact.size(1) << ", " << c10::toString(dtype) << ", " << accumulate);
      at::Tensor out = accumulate ? random_tensor(exact.sizes(), dtype) : garbage(exact.sizes(), dtype);
      const at::Tensor expected = accumulate ? out.to(at::kDouble) + exact : exact;
      fp8_product(out, a, b, accumulate);
      const double added = accumulate && exact.numel() > 0 ? rounding(dtype) * exact.abs().max().item<double>() : 0;
      expect_close("product", out, expected, {rounding(dtype) + eps_fp32, 0x1p-12 * most + added});
    }
}

at::Tensor random_rows(int64_t rows, int64_t columns) {
  return random_tensor({rows, columns}, at::kBFloat16) * at::pow(2.0, at::randn({rows, 1}) * 3).to(at::kBFloat16);
}

// y = x W^T and grad_x = grad_y W: sums over 1, 3 and 5 blocks, whose scales fill rows of 4 or 8.
TEST(Fp8Product, of_rows_and_a_weight) {
  for (const at::ScalarType format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2})
    for (const int64_t rows : {0, 1, 16, 130})
      for (const auto& [n, m] : {std::pair<int64_t, int64_t>{128, 384}, {256, 640}}) {
        const at::Tensor w = random_rows(n, m);
        expect_product(quantize_rows(random_rows(rows, m), format), quantize_weight(w), rows);
        expect_product(quantize_rows(random_rows(rows, n), format), quantize_transposed_weight(w), rows);
      }
}

// grad_W = grad_y^T x.
TEST(Fp8Product, of_columns) {
  for (const int64_t rows : {0, 1, 128, 300})
    for (const auto& [n, m] : {std::pair<int64_t, int64_t>{128, 384}, {256, 128}}) {
      const at::Tensor grad = random_rows(rows, n), x = random_rows(rows, m);
      expect_product(quantize_columns(grad, at::kFloat8_e5m2), quantize_columns(x, at::kFloat8_e4m3fn), n);
    }
}

// At addresses of whole 16 bytes and not, with all of a's 16 rows and with fewer.
TEST(Fp8ProductEntry, writes_into_the_view_it_is_given) {
  for (const int64_t before : {1, 4})
    for (const int64_t rows : {5, 16}) {
      at::Tensor buffer = at::full({before + 16 * 128 + 1}, 42.0f);
      const at::Tensor x = at::randint(-8, 9, {rows, 128}, at::kFloat);  // exact in e4m3
      const at::Tensor out = buffer.narrow(0, before, rows * 128).view({rows, 128});
      const Fp8Matrix a = quantize_rows(x, at::kFloat8_e4m3fn), identity = quantize_weight(at::eye(128));
      fp8_product(out, a, identity, /*accumulate=*/false);
      expect_identical("written", out, x);
      fp8_product(out, a, identity, /*accumulate=*/true);
      expect_identical("added", out, 2 * x);
      EXPECT_TRUE(buffer.narrow(0, 0, before).eq(42).all().item<bool>());
      EXPECT_TRUE(buffer.slice(0, before + rows * 128).eq(42).all().item<bool>());
    }
}

TEST(Fp8ProductEntry, refuses_what_no_chip_multiplies) {
  const at::Tensor x = at::ones({16, 128});
  at::Tensor out = at::zeros({16, 16});
  const Fp8Matrix e4m3 = quantize_rows(x, at::kFloat8_e4m3fn), e5m2 = quantize_rows(x, at::kFloat8_e5m2);
  EXPECT_THROW(fp8_product(out, e5m2, e5m2, false), InvariantError);
  EXPECT_THROW(fp8_product(out, quantize_weight(x), quantize_weight(x), false), InvariantError);
  EXPECT_THROW(fp8_product(at::zeros({17, 16}), e4m3, e4m3, false), InvariantError);
  EXPECT_THROW(fp8_product(out, e4m3, quantize_rows(at::ones({16, 256}), at::kFloat8_e4m3fn), false), InvariantError);
}

}  // namespace
}  // namespace conclave
