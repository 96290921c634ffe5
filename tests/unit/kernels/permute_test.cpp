#include "kernels/permute.h"

#include <cstring>

#include "base/error.h"
#include "kernel_test.h"

namespace conclave {
namespace {

constexpr at::ScalarType dtypes[] = {at::kFloat, at::kBFloat16};

// Rows [R,H], and for every token K choices among them, -1 for every fourth or so.
struct Case {
  at::Tensor rows, row_of_choice;
};

Case make_case(int64_t rows, int64_t tokens, int64_t top_k, int64_t hidden, at::ScalarType dtype) {
  const at::Tensor row_of_choice = rows == 0 ? at::full({tokens, top_k}, -1, at::kInt)
                                             : random_integers(-(rows + 3) / 4, rows, {tokens, top_k}, at::kInt);
  return {random_tensor({rows, hidden}, dtype), row_of_choice.clamp_min(-1)};
}

// sum over k of rows[row_of_choice[t,k]] in double, in a plain loop.
at::Tensor sum_in_double(const Case& c) {
  const at::Tensor rows = c.rows.to(at::kDouble);
  at::Tensor sum = at::zeros({c.row_of_choice.size(0), rows.size(1)}, at::kDouble);
  for (int64_t t = 0; t < sum.size(0); ++t) {
    for (int64_t k = 0; k < c.row_of_choice.size(1); ++k) {
      const int64_t row = c.row_of_choice[t][k].item<int64_t>();
      if (row >= 0) sum[t] += rows[row];
    }
  }
  return sum;
}

class Permute : public SimdTest {};

// Oracle: at::index_select; exact.
TEST_P(Permute, gather_equals_index_select) {
  for (const at::ScalarType dtype : dtypes) {
    for (const int64_t hidden : {1, 7, 17, 257}) {
      for (const int64_t count : {0, 1, 33, 300}) {
        const at::Tensor rows = random_tensor({9, hidden}, dtype), index = random_integers(0, 9, {count}, at::kInt);
        at::Tensor out = garbage({count, hidden}, dtype), plain = garbage({count, hidden}, dtype);
        gather_rows(out, rows, index);
        reference::gather_rows(plain, rows, index);
        expect_identical("gathered", out, at::index_select(rows, 0, index));
        expect_identical("gathered by the reference", plain, out);
      }
    }
  }
  at::Tensor nothing = garbage({0, 5});
  gather_rows(nothing, at::empty({0, 5}), at::empty({0}, at::kInt));
}

// The form on the wire: the row's bytes, the weight's bytes, zeros up to a multiple of 16. Exact.
TEST_P(Permute, a_message_is_a_row_its_weight_and_zeros) {
  for (const at::ScalarType dtype : dtypes) {
    for (const int64_t hidden : {1, 3, 8, 17, 100}) {
      const int64_t bytes = hidden * static_cast<int64_t>(c10::elementSize(dtype)), size = message_bytes(hidden, dtype);
      EXPECT_EQ(size % 16, 0);
      EXPECT_GE(size, bytes + 4);
      EXPECT_LT(size, bytes + 4 + 16);
      for (const int64_t count : {0, 1, 33}) {
        const at::Tensor rows = random_tensor({5, hidden}, dtype), weights = random_tensor({4, 3});
        const at::Tensor row_index = random_integers(0, 5, {count}, at::kInt);
        const at::Tensor weight_index = random_integers(0, 12, {count}, at::kInt);
        at::Tensor messages = at::full({count, size}, 255, at::kByte), plain = messages.clone();
        pack_rows(messages, rows, row_index, weights, weight_index);
        reference::pack_rows(plain, rows, row_index, weights, weight_index);
        expect_identical("messages of the reference", plain, messages);
        std::vector<char> expected(count * size, 0);
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = row_index[r].item<int64_t>(), weight = weight_index[r].item<int64_t>();
          std::memcpy(expected.data() + r * size, static_cast<char*>(rows.data_ptr()) + row * bytes, bytes);
          std::memcpy(expected.data() + r * size + bytes, weights.data_ptr<float>() + weight, 4);
        }
        if (count > 0) {
          EXPECT_EQ(std::memcmp(expected.data(), messages.data_ptr(), expected.size()), 0);
        }
      }
    }
  }
}

// Packed and unpacked, rows and weights come back bit for bit, in the order of the index.
TEST_P(Permute, unpack_is_the_inverse_of_pack) {
  for (const at::ScalarType dtype : dtypes) {
    for (const int64_t hidden : {1, 7, 64, 257}) {
      for (const int64_t count : {0, 1, 40}) {
        const at::Tensor rows = random_tensor({count, hidden}, dtype), weights = random_tensor({count});
        const at::Tensor order = at::randperm(count, at::kInt), inverse = at::argsort(order).to(at::kInt);
        at::Tensor messages = at::empty({count, message_bytes(hidden, dtype)}, at::kByte);
        pack_rows(messages, rows, order, weights, order);
        at::Tensor out = garbage({count, hidden}, dtype), weight = garbage({count});
        unpack_rows(out, weight, messages, inverse);
        expect_identical("rows", out, rows);
        expect_identical("weights", weight, weights);
        at::Tensor plain = garbage({count, hidden}, dtype), plain_weight = garbage({count});
        reference::unpack_rows(plain, plain_weight, messages, inverse);
        expect_identical("rows of the reference", plain, rows);
        expect_identical("weights of the reference", plain_weight, weights);
      }
    }
  }
}

// Oracle: a plain loop in double. Tolerance: K + 1 additions of values up to 5 each, one rounding; and fast path and
// reference agree to the bit, for both add in the order of k.
TEST_P(Permute, combine_equals_a_plain_loop) {
  for (const at::ScalarType dtype : dtypes) {
    for (const int64_t hidden : {1, 7, 17, 64, 257}) {
      for (const int64_t tokens : {0, 1, 33}) {
        for (const int64_t top_k : {1, 2, 8}) {
          for (const int64_t count : {0, 1, 20}) {
            const Case c = make_case(count, tokens, top_k, hidden, dtype);
            const at::Tensor residual = random_tensor({tokens, hidden}, dtype), sum = sum_in_double(c);
            const Tolerance tolerance{rounding(dtype), (top_k + 1) * eps_fp32 * 5 * top_k};
            at::Tensor out = garbage({tokens, hidden}, dtype), plain = garbage({tokens, hidden}, dtype);
            combine_rows(out, residual, c.rows, c.row_of_choice);
            reference::combine_rows(plain, residual, c.rows, c.row_of_choice);
            expect_close("with residual", out, residual.to(at::kDouble) + sum, tolerance);
            expect_identical("with residual, reference", plain, out);
            combine_rows(out, {}, c.rows, c.row_of_choice);
            reference::combine_rows(plain, {}, c.rows, c.row_of_choice);
            expect_close("without residual", out, sum, tolerance);
            expect_identical("without residual, reference", plain, out);
          }
        }
      }
    }
  }
}

TEST_P(Permute, the_residual_may_be_the_output) {
  for (const at::ScalarType dtype : dtypes) {
    const Case c = make_case(12, 21, 3, 37, dtype);
    at::Tensor residual = random_tensor({21, 37}, dtype), out = garbage({21, 37}, dtype);
    combine_rows(out, residual, c.rows, c.row_of_choice);
    combine_rows(residual, residual, c.rows, c.row_of_choice);
    expect_identical("combined in place", residual, out);
  }
}

// Oracle: combine_rows over the rows that were packed (tested above), and the weights themselves; exact.
TEST_P(Permute, combine_messages_equals_combine_rows) {
  for (const at::ScalarType dtype : dtypes) {
    for (const int64_t hidden : {1, 7, 17, 64}) {
      for (const int64_t count : {0, 1, 20}) {
        const Case c = make_case(count, 15, 2, hidden, dtype);
        const at::Tensor weights = random_tensor({count}), identity = at::arange(count, at::kInt);
        at::Tensor messages = at::empty({count, message_bytes(hidden, dtype)}, at::kByte);
        pack_rows(messages, c.rows, identity, weights, identity);
        at::Tensor expected = garbage({15, hidden}, dtype), expected_weight = at::zeros({15, 2});
        combine_rows(expected, {}, c.rows, c.row_of_choice);
        for (int64_t t = 0; t < 15; ++t) {
          for (int64_t k = 0; k < 2; ++k) {
            const int64_t row = c.row_of_choice[t][k].item<int64_t>();
            if (row >= 0) expected_weight[t][k] = weights[row];
          }
        }
        for (const auto combine : {combine_messages, reference::combine_messages}) {
          at::Tensor out = garbage({15, hidden}, dtype), weight = garbage({15, 2});
          combine(out, weight, messages, c.row_of_choice);
          expect_identical("out", out, expected);
          expect_identical("weight", weight, expected_weight);
        }
      }
    }
  }
}

// Oracle: what the header promises of the order, checked one by one.
TEST(ExpertOrder, is_a_stable_sort_with_its_inverse) {
  for (const int64_t experts : {1, 2, 8, 128}) {
    for (const int64_t tokens : {0, 1, 33, 257}) {
      for (const int64_t top_k : {1, 2, 8}) {
        for (const bool all_to_one : {false, true}) {
          const at::Tensor expert = all_to_one ? at::full({tokens, top_k}, experts - 1, at::kInt)
                                               : random_integers(0, experts, {tokens, top_k}, at::kInt);
          const ExpertOrder order = order_by_expert(expert, experts);
          const int32_t* expert_of = expert.data_ptr<int32_t>();
          const int32_t* choice_of = order.choice_of_row_R.data_ptr<int32_t>();
          const int32_t* row_of = order.row_of_choice_TK.data_ptr<int32_t>();
          std::vector<int64_t> count(experts);
          for (int64_t row = 0; row < tokens * top_k; ++row) {
            EXPECT_EQ(row_of[choice_of[row]], row);
            ++count[expert_of[choice_of[row]]];
            if (row == 0) continue;
            const auto key = [&](int64_t r) { return std::pair(expert_of[choice_of[r]], choice_of[r]); };
            EXPECT_LT(key(row - 1), key(row));
          }
          for (int64_t e = 0; e < experts; ++e) EXPECT_EQ(order.count_E[e].item<int64_t>(), count[e]);
          const ExpertOrder plain = reference::order_by_expert(expert, experts);
          expect_identical("choice_of_row", plain.choice_of_row_R, order.choice_of_row_R);
          expect_identical("row_of_choice", plain.row_of_choice_TK, order.row_of_choice_TK);
          expect_identical("count", plain.count_E, order.count_E);
        }
      }
    }
  }
}

// Dropped choices have no row, and the others are ordered as if they had never been there.
TEST(ExpertOrder, leaves_out_what_is_dropped) {
  for (const int64_t tokens : {0, 1, 40})
    for (const int64_t top_k : {1, 3}) {
      const at::Tensor expert = random_integers(-1, 5, {tokens, top_k}, at::kInt);
      const ExpertOrder order = order_by_expert(expert, 5), plain = reference::order_by_expert(expert, 5);
      expect_identical("choice_of_row", plain.choice_of_row_R, order.choice_of_row_R);
      expect_identical("row_of_choice", plain.row_of_choice_TK, order.row_of_choice_TK);
      expect_identical("count", plain.count_E, order.count_E);
      const int64_t kept = expert.ge(0).sum().item<int64_t>();
      ASSERT_EQ(order.choice_of_row_R.numel(), kept);
      EXPECT_EQ(order.count_E.sum().item<int64_t>(), kept);
      for (int64_t row = 0; row < kept; ++row)
        EXPECT_EQ(order.row_of_choice_TK.flatten()[order.choice_of_row_R[row].item<int32_t>()].item<int32_t>(), row);
      EXPECT_TRUE(order.row_of_choice_TK.lt(0).equal(expert.lt(0)));
    }
}

TEST_P(Permute, does_not_depend_on_threads) {
  const Case c = make_case(700, 400, 2, 300, at::kBFloat16);
  const at::Tensor index = random_integers(0, 700, {600}, at::kInt), weights = random_tensor({700});
  expect_same_for_any_threads([&] {
    at::Tensor gathered = garbage({600, 300}, at::kBFloat16), combined = garbage({400, 300}, at::kBFloat16);
    at::Tensor messages = at::empty({600, message_bytes(300, at::kBFloat16)}, at::kByte);
    gather_rows(gathered, c.rows, index);
    combine_rows(combined, {}, c.rows, c.row_of_choice);
    pack_rows(messages, c.rows, index, weights, index);
    return std::vector<at::Tensor>{gathered, combined, messages};
  });
}

TEST(PermuteEntry, refuses_an_index_outside_the_rows) {
  if (breach_breaks_device) GTEST_SKIP() << "a kernel that traps leaves a device that no later test can use";
  const at::Tensor rows = at::zeros({3, 4});
  at::Tensor out = at::zeros({1, 4});
  for (const int32_t index : {-1, 3}) {
    EXPECT_THROW(gather_rows(out, rows, at::full({1}, index, at::kInt)), InvariantError);
  }
  EXPECT_THROW(combine_rows(out, {}, rows, at::full({1, 2}, 3, at::kInt)), InvariantError);
  EXPECT_THROW(order_by_expert(at::full({1, 2}, 8, at::kInt), 8), InvariantError);
  EXPECT_THROW(order_by_expert(at::full({1, 2}, -2, at::kInt), 8), InvariantError);
}

CONCLAVE_SIMD_TESTS(Permute);

}  // namespace
}  // namespace conclave
