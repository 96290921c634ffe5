#include "kernels/rotary.h"

#include <cmath>

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

// Oracle: the angles in double. Tolerance: an inverse frequency errs by some 4 eps (division, power, reciprocal), so an
// angle errs by that times the position (here < 100) plus its rounding; as Transformers' does.
TEST(RotaryTable, holds_the_angles_of_the_formula) {
  const int64_t sequence = 100, head_dim = 10;
  const RotaryTable table = rotary_table(sequence, {.dims = head_dim}, at::kCPU);
  at::Tensor angle = at::empty({sequence, head_dim / 2}, at::kDouble);
  for (int64_t position = 0; position < sequence; ++position) {
    for (int64_t j = 0; j < head_dim / 2; ++j) {
      angle[position][j] = position * std::pow(10000.0, -2.0 * j / head_dim);
    }
  }
  expect_close("cos", table.cos_SD, angle.cos(), {0, 6 * eps_fp32 * sequence});
  expect_close("sin", table.sin_SD, angle.sin(), {0, 6 * eps_fp32 * sequence});
}

struct Scaled {
  const char* name;
  RotaryOptions options;
  std::vector<double> frequency;
};

// The frequencies that Transformers 5.17 computes from these options (modeling_rope_utils.py).
const std::vector<Scaled>& scaled() {
  static const std::vector<Scaled> values = {
      {"linear",
       {.dims = 12, .scaling = RotaryScaling::linear, .factor = 3},
       {0.333333343, 0.0718144849, 0.0154719613, 0.00333333318, 0.000718144758, 0.000154719644}},
      {"llama3",
       {.dims = 16, .theta = 5e5, .scaling = RotaryScaling::llama3, .factor = 8, .original_positions = 512},
       {1, 0.193922758, 0.0273441337, 0.000911583134, 0.000176776681, 3.42810235e-05, 6.64786967e-06, 1.28917316e-06}},
      {"yarn, not truncated",
       {.dims = 16,
        .theta = 150000,
        .scaling = RotaryScaling::yarn,
        .factor = 32,
        .original_positions = 4096,
        .truncate = false,
        .attention_factor = 1.3465735902799727},
       {1, 0.225418001, 0.0508132726, 0.00679495931, 0.000456483918, 1.8188337e-05, 4.09997847e-06, 9.24208962e-07}},
      {"yarn",
       {.dims = 16,
        .scaling = RotaryScaling::yarn,
        .factor = 40,
        .original_positions = 4096,
        .attention_factor = 1.0879546075066122},
       {1, 0.316227764, 0.100000001, 0.0239147246, 0.00512499968, 0.000849862176, 2.49999994e-05, 7.90569447e-06}}};
  return values;
}

// Oracle: the angles of Transformers' frequencies, in double. Tolerance: these have nine digits, an angle is rounded
// once, its cosine too, and so is the product with the factor.
TEST(RotaryTable, has_the_frequencies_of_transformers) {
  for (const Scaled& c : scaled()) {
    SCOPED_TRACE(c.name);
    const int64_t sequence = 700;
    const RotaryTable table = rotary_table(sequence, c.options, at::kCPU);
    const at::Tensor angle = at::outer(at::arange(sequence, at::kDouble), at::tensor(c.frequency, at::kDouble));
    const double factor = c.options.attention_factor, error = (sequence + 3) * eps_fp32;
    expect_close("cos", table.cos_SD, angle.cos() * factor, {0, error * factor});
    expect_close("sin", table.sin_SD, angle.sin() * factor, {0, error * factor});
    // The lowest frequencies turn so little that only small tolerances tell them apart.
    expect_close("first sin", table.sin_SD[1], at::tensor(c.frequency, at::kDouble).sin() * factor, {4 * eps_fp32, 0});
  }
}

// Hugging Face's expression on the dims that turn, in double: x * cos + rotate_half(x) * sin, after dims that turn by
// turns were laid side by side, and back.
at::Tensor expression(const at::Tensor& rows, int64_t heads, int64_t head_dim, const RotaryTable& table) {
  const int64_t tokens = rows.size(0), sequence = table.cos_SD.size(0), dims = table.dims(), half = dims / 2;
  at::Tensor out = rows.to(at::kDouble).clone();
  const auto twice = [&](const at::Tensor& t) {
    return at::cat({t, t}, 1).to(at::kDouble).repeat({tokens / sequence, 1});
  };
  std::vector<at::Tensor> parts;
  for (int64_t head = 0; head < heads; ++head) {
    at::Tensor x = out.narrow(1, head * head_dim, dims);
    if (table.interleaved) x = x.reshape({tokens, half, 2}).transpose(1, 2).reshape({tokens, dims});
    const at::Tensor rotated = at::cat({-x.narrow(1, half, half), x.narrow(1, 0, half)}, 1);
    x = x * twice(table.cos_SD) + rotated * twice(table.sin_SD);
    if (table.interleaved) x = x.reshape({tokens, 2, half}).transpose(1, 2).reshape({tokens, dims});
    parts.push_back(x);
    const int64_t end = head * head_dim + dims, next = head + 1 < heads ? (head + 1) * head_dim : rows.size(1);
    parts.push_back(out.narrow(1, end, next - end));
  }
  return heads == 0 ? out : at::cat(parts, 1);
}

// Oracle: Hugging Face's expression, and autograd for the way back. Tolerance: a few roundings of double.
TEST(RotaryReference, equals_autograd) {
  for (const bool interleaved : {false, true}) {
    const RotaryTable table =
        rotary_table(5, {.dims = 6, .interleaved = interleaved, .attention_factor = 1.5}, at::kCPU);
    const at::Tensor rows = leaf(random_tensor({10, 2 * 9 + 3}, at::kDouble));
    const at::Tensor grad_out = random_tensor(rows.sizes(), at::kDouble);
    const at::Tensor expected = expression(rows, 2, 9, table);
    at::Tensor actual = rows.detach().clone(), grad = grad_out.clone();
    reference::rotary_forward_(actual, 2, 9, table);
    expect_close("out", actual, expected, {1e-14, 1e-15});
    reference::rotary_backward_(grad, 2, 9, table);
    expect_close("grad", grad, gradients(expected, grad_out, {rows})[0], {1e-14, 1e-15});
  }
}

class Rotary : public SimdTest {};

// Oracle: Hugging Face's expression in double with the same table. Tolerance: two products and a sum of terms up to 6,
// then one rounding.
void expect_expression(int64_t batch, int64_t heads, int64_t head_dim, const RotaryTable& table, at::ScalarType dtype) {
  SCOPED_TRACE(testing::Message() << batch << " x " << table.cos_SD.size(0) << ", " << heads << " heads of " << head_dim
                                  << ", " << table.dims() << " turn, interleaved " << table.interleaved);
  const int64_t tokens = batch * table.cos_SD.size(0), columns = heads * head_dim + 5;
  // Rows within longer ones.
  const at::Tensor room = random_tensor({tokens, columns + 3}, dtype);
  const at::Tensor rows = room.narrow(1, 2, columns);
  at::Tensor forward_room = room.clone(), backward_room = room.clone();
  at::Tensor forward = forward_room.narrow(1, 2, columns), backward = backward_room.narrow(1, 2, columns);
  rotary_forward_(forward, heads, head_dim, table);
  rotary_backward_(backward, heads, head_dim, table);
  const Tolerance tolerance{rounding(dtype), 3 * eps_fp32 * 6};
  expect_close("forward", forward, expression(rows, heads, head_dim, table), tolerance);
  const RotaryTable inverse{table.cos_SD, -table.sin_SD, table.interleaved};
  expect_close("backward", backward, expression(rows, heads, head_dim, inverse), tolerance);
  for (int64_t head = 0; head < heads; ++head) {
    const int64_t still = head * head_dim + table.dims(), count = head_dim - table.dims();
    expect_identical("dims that do not turn", forward.narrow(1, still, count), rows.narrow(1, still, count));
  }
  expect_identical("the other heads", forward.narrow(1, heads * head_dim, 5), rows.narrow(1, heads * head_dim, 5));
  expect_identical("before", forward_room.narrow(1, 0, 2), room.narrow(1, 0, 2));
}

TEST_P(Rotary, equals_the_expression) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const int64_t dims : {2, 8, 14, 34, 128})
      for (const int64_t sequence : {1, 7, 33})
        for (const int64_t heads : {0, 1, 5})
          for (const int64_t batch : {0, 1, 3})
            expect_expression(batch, heads, dims, rotary_table(sequence, {.dims = dims, .theta = 1e6}, at::kCPU),
                              dtype);
}

TEST_P(Rotary, turns_pairs_of_neighbours_and_the_first_dims_alone) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16})
    for (const bool interleaved : {false, true})
      for (const int64_t dims : {2, 6, 10, 34, 64})
        for (const int64_t more : {0, 1, 24, 64})
          for (const int64_t batch : {0, 2})
            expect_expression(batch, 3, dims + more,
                              rotary_table(9, {.dims = dims, .interleaved = interleaved}, at::kCPU), dtype);
}

// Oracle: a table whose rows are those of the positions, one for each row of the tensor.
TEST_P(Rotary, takes_the_positions_it_is_given) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble})
    for (const bool interleaved : {false, true})
      for (const int64_t dims : {2, 14, 64})
        for (const int64_t count : {0, 1, 13}) {
          RotaryTable table = rotary_table(9, {.dims = dims, .interleaved = interleaved}, at::kCPU);
          const at::Tensor position = random_integers(0, 9, {count}, at::kInt);
          const RotaryTable by_row{table.cos_SD.index_select(0, position), table.sin_SD.index_select(0, position),
                                   interleaved};
          table.position_T = position;
          const at::Tensor rows = random_tensor({count, 3 * dims}, dtype);
          for (const auto turn_ : {rotary_forward_, rotary_backward_}) {
            at::Tensor actual = rows.clone(), expected = rows.clone();
            turn_(actual, 3, dims, table);
            if (count > 0) turn_(expected, 3, dims, by_row);
            expect_identical("rows", actual, expected);
          }
        }
}

TEST_P(Rotary, does_not_depend_on_threads) {
  const RotaryTable table = rotary_table(100, {.dims = 64}, at::kCPU);
  const at::Tensor rows = random_tensor({300, 8 * 64});
  expect_same_for_any_threads([&] {
    at::Tensor turned = rows.clone();
    rotary_forward_(turned, 6, 64, table);
    return std::vector<at::Tensor>{turned};
  });
}

TEST(RotaryEntry, refuses_what_does_not_fit) {
  const RotaryTable table = rotary_table(5, {.dims = 6}, at::kCPU);
  EXPECT_THROW(rotary_forward_(at::zeros({7, 12}), 2, 6, table), InvariantError);   // 7 rows in sequences of 5
  EXPECT_THROW(rotary_forward_(at::zeros({10, 12}), 3, 6, table), InvariantError);  // 3 heads of 6 in rows of 12
  EXPECT_THROW(rotary_forward_(at::zeros({10, 12}), 2, 5, table), InvariantError);  // 6 dims of 5
  EXPECT_THROW(rotary_table(5, {.dims = 7}, at::kCPU), InvariantError);
  RotaryTable with_positions = table;
  with_positions.position_T = at::zeros({9}, at::kInt);
  EXPECT_THROW(rotary_forward_(at::zeros({10, 12}), 2, 6, with_positions), InvariantError);  // of another row each
  EXPECT_THROW(rotary_table(5, {.dims = 8, .scaling = RotaryScaling::yarn}, at::kCPU), InvariantError);
}

CONCLAVE_SIMD_TESTS(Rotary);

}  // namespace
}  // namespace conclave
