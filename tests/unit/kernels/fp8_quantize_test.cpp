// Oracle: the rule of the header, element by element, with c10's conversions: values and scales equal bit for bit.
#include "kernels/fp8_quantize.h"

#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e5m2.h>

#include <cmath>

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

constexpr at::ScalarType formats[] = {at::kFloat8_e4m3fn, at::kFloat8_e5m2};

double largest_number(at::ScalarType format) {
  return format == at::kFloat8_e4m3fn ? 448 : 57344;
}

int64_t up_to_multiple(int64_t count, int64_t of) {
  return (count + of - 1) / of * of;
}

// fp32 [rows, columns] with x in its first corner.
at::Tensor with_zeros(const at::Tensor& x, int64_t rows, int64_t columns) {
  at::Tensor padded = at::zeros({rows, columns});
  padded.narrow(0, 0, x.size(0)).narrow(1, 0, x.size(1)).copy_(x);
  return padded;
}

float plain_scale(const at::Tensor& block, at::ScalarType format) {
  if (!block.isfinite().all().item<bool>()) return NAN;
  const auto amax = block.abs().max().item<double>();
  if (amax == 0) return 1;
  double scale = 0x1p-126;
  while (amax / scale > largest_number(format)) scale *= 2;
  return static_cast<float>(scale);
}

uint8_t plain_value(float x, float scale, at::ScalarType format) {
  const float quotient = std::isnan(scale) ? NAN : x / scale;
  return format == at::kFloat8_e4m3fn ? c10::Float8_e4m3fn(quotient).x : c10::Float8_e5m2(quotient).x;
}

struct Plain {
  at::Tensor value, scale;  // uint8 [X,S], fp32 [blocks of X, blocks of S]
};

Plain quantize_plainly(const at::Tensor& x_XS, int64_t block_rows, at::ScalarType format) {
  const int64_t rows = x_XS.size(0), columns = x_XS.size(1);
  Plain plain{at::empty({rows, columns}, at::kByte),
              at::empty({(rows + block_rows - 1) / block_rows, (columns + fp8_block - 1) / fp8_block})};
  for (int64_t top = 0; top < rows; top += block_rows)
    for (int64_t left = 0; left < columns; left += fp8_block) {
      const auto block_of = [&](const at::Tensor& tensor) {
        return tensor.narrow(0, top, std::min(block_rows, rows - top))
            .narrow(1, left, std::min(fp8_block, columns - left));
      };
      const at::Tensor block = block_of(x_XS), value = block_of(plain.value);
      const float scale = plain_scale(block, format);
      plain.scale[top / block_rows][left / fp8_block] = scale;
      const auto from = block.accessor<float, 2>();
      auto to = value.accessor<uint8_t, 2>();
      for (int64_t r = 0; r < block.size(0); ++r)
        for (int64_t c = 0; c < block.size(1); ++c) to[r][c] = plain_value(from[r][c], scale, format);
    }
  return plain;
}

void expect_equal(const char* name, const Fp8Matrix& actual, at::ScalarType format, const Plain& expected) {
  ASSERT_EQ(actual.value_XS.scalar_type(), format) << name;
  expect_identical(name, actual.value_XS.view(at::kByte), expected.value);
  const bool rows = actual.blocks == Fp8Blocks::rows;
  const at::Tensor scale = rows ? actual.scale.t() : actual.scale.narrow(1, 0, expected.scale.size(1));
  expect_identical(name, scale.contiguous().view(at::kInt), expected.scale.view(at::kInt));
  EXPECT_TRUE(actual.value_XS.is_contiguous() && actual.scale.is_contiguous()) << name;
  EXPECT_TRUE(rows || actual.scale.size(1) % 4 == 0) << name;
}

void expect_all_equal(const at::Tensor& x) {
  SCOPED_TRACE(testing::Message() << x.sizes() << " of " << c10::toString(x.scalar_type()));
  const int64_t rows = x.size(0), columns = x.size(1);
  for (const at::ScalarType format : formats) {
    const at::Tensor padded = with_zeros(x, up_to_multiple(rows, 16), columns);
    expect_equal("rows", quantize_rows(x, format), format, quantize_plainly(padded, 1, format));
    const at::Tensor padded_columns = with_zeros(x.t(), columns, up_to_multiple(rows, fp8_block));
    expect_equal("columns", quantize_columns(x, format), format, quantize_plainly(padded_columns, 1, format));
  }
  const at::Tensor w = x.to(at::kFloat);
  const at::ScalarType e4m3 = at::kFloat8_e4m3fn;
  expect_equal("weight", quantize_weight(x), e4m3, quantize_plainly(w, fp8_block, e4m3));
  expect_equal("transposed weight", quantize_transposed_weight(x), e4m3,
               quantize_plainly(w.t().contiguous(), fp8_block, e4m3));
}

// Elements of all magnitudes, so that blocks have elements below the format's normal numbers.
at::Tensor of_many_magnitudes(at::IntArrayRef sizes, at::ScalarType dtype) {
  return (at::randn(sizes) * at::pow(2.0, at::randn(sizes) * 6)).to(dtype);
}

TEST(Fp8Quantize, equals_the_rule_for_every_shape) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int64_t rows : {0, 1, 17, 128, 131})
      for (const int64_t columns : {1, 8, 128, 136, 301}) expect_all_equal(of_many_magnitudes({rows, columns}, dtype));
}

// A width of scales beyond four.
TEST(Fp8Quantize, equals_the_rule_for_long_rows) {
  expect_all_equal(of_many_magnitudes({3, 5 * fp8_block}, at::kBFloat16));
  expect_all_equal(of_many_magnitudes({5 * fp8_block, 3}, at::kBFloat16));
}

TEST(Fp8Quantize, reads_at_an_address_that_allows_no_wide_access) {
  const at::Tensor room = of_many_magnitudes({2 * fp8_block + 1}, at::kBFloat16);
  expect_all_equal(room.narrow(0, 1, 2 * fp8_block).view({2, fp8_block}));
}

// The largest number of the format times a power of two, its neighbours, subnormals, the ends of fp32.
TEST(Fp8Quantize, equals_the_rule_where_the_scale_turns) {
  const float largest = std::numeric_limits<float>::max(), least = std::numeric_limits<float>::denorm_min();
  for (const float amax : {448.0f, std::nextafter(448.0f, 500.0f), 0x1.cp-20f, 0x1.c00002p-20f, 1.0f, 0.875f, 0x1p-110f,
                           0x1p-118f, 0x1p-126f, 0x1p-140f, least, largest, 0x1.cp127f, 3e38f})
    for (const float sign : {1.0f, -1.0f}) {
      at::Tensor x = at::rand({2, fp8_block + 2}) * amax;
      x[1].fill_(0);
      x[0][3] = sign * amax;
      expect_all_equal(x);
    }
}

TEST(Fp8Quantize, a_block_that_is_not_finite_is_not_a_number_and_its_neighbours_are_not) {
  for (const float bad : {NAN, -NAN, INFINITY, -INFINITY})
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      at::Tensor x = random_tensor({2 * fp8_block, 2 * fp8_block}, dtype);
      x[130][5] = bad;
      expect_all_equal(x);
      const auto nans = [](const Fp8Matrix& m) { return dequantize(m).isnan().sum().item<int64_t>(); };
      EXPECT_EQ(nans(quantize_rows(x, at::kFloat8_e4m3fn)), fp8_block);
      EXPECT_EQ(nans(quantize_columns(x, at::kFloat8_e5m2)), fp8_block);
      EXPECT_EQ(nans(quantize_weight(x)), fp8_block * fp8_block);
    }
}

// One rounding: half of the spacing, which is 2^-3 (e4m3) or 2^-2 (e5m2) of a number at most, and below the normal
// numbers 2^-9 or 2^-16 of the scale.
TEST(Fp8Quantize, errs_by_one_rounding) {
  const at::Tensor x = of_many_magnitudes({150, 300}, at::kBFloat16), exact = x.to(at::kDouble);
  for (const at::ScalarType format : formats) {
    const bool e4m3 = format == at::kFloat8_e4m3fn;
    const double relative = e4m3 ? 0x1p-4 : 0x1p-3, below = e4m3 ? 0x1p-10 : 0x1p-17;
    // The scale is below 2 amax / largest.
    const double absolute = below * 2 * exact.abs().max().item<double>() / largest_number(format);
    const Fp8Matrix rows = quantize_rows(x, format), columns = quantize_columns(x, format);
    expect_close("rows", dequantize(rows).narrow(0, 0, 150), exact, {relative, absolute});
    expect_close("columns", dequantize(columns).narrow(1, 0, 150).t(), exact, {relative, absolute});
  }
  const double absolute = 0x1p-10 * 2 * exact.abs().max().item<double>() / 448;
  expect_close("weight", dequantize(quantize_weight(x)), exact, {0x1p-4, absolute});
  expect_identical("transposed", dequantize(quantize_transposed_weight(x)).t().contiguous(),
                   dequantize(quantize_weight(x)));
}

TEST(Fp8QuantizeEntry, refuses_what_is_no_matrix_or_no_format) {
  EXPECT_THROW(quantize_rows(at::zeros({4}), at::kFloat8_e4m3fn), InvariantError);
  EXPECT_THROW(quantize_rows(at::zeros({4, 6}).t(), at::kFloat8_e4m3fn), InvariantError);
  EXPECT_THROW(quantize_columns(at::zeros({4, 6}), at::kBFloat16), InvariantError);
  EXPECT_THROW(quantize_weight(at::zeros({4, 6}).t()), InvariantError);
}

}  // namespace
}  // namespace conclave
