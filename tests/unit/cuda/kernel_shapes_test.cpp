// Shapes at which the kernels of src/cuda take another way than at those of tests/unit/kernels: rows longer than a
// block's one sweep, of whole packs and not, at addresses that allow no wide access; several blocks' sums; more experts
// than threads; routing of all kinds.
//
// Oracle: the reference in double on the same inputs. Tolerance: one rounding to the dtype, and for a sum of n terms
// (n eps) of the sum of magnitudes, though the sums by threads, warps and blocks are far better than that.
#include "kernel_test.h"
#include "kernels/adamw.h"
#include "kernels/clamped_swiglu.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/permute.h"
#include "kernels/rms_norm.h"
#include "kernels/rotary.h"
#include "kernels/router.h"
#include "kernels/swiglu.h"

namespace conclave {
namespace {

constexpr at::ScalarType dtypes[] = {at::kFloat, at::kBFloat16};
const int64_t row_lengths[] = {8, 2048, 4104, 4105};

at::Tensor exact(const at::Tensor& tensor) {
  return tensor.to(at::kDouble);
}

// The same values at an address that is a multiple of the element's size only.
at::Tensor at_odd_address(const at::Tensor& tensor) {
  at::Tensor room = at::empty({tensor.numel() + 1}, tensor.options());
  return room.narrow(0, 1, tensor.numel()).view(tensor.sizes()).copy_(tensor);
}

at::Tensor maybe_odd(const at::Tensor& tensor, bool odd) {
  return odd ? at_odd_address(tensor) : tensor;
}

TEST(KernelShapes, swiglu) {
  for (const at::ScalarType dtype : dtypes)
    for (const int64_t columns : row_lengths)
      for (const bool odd : {false, true}) {
        const at::Tensor gate_up = maybe_odd(random_tensor({3, 2 * columns}, dtype), odd), weight = at::rand({3});
        const at::Tensor grad_out = random_tensor({3, columns}, dtype);
        at::Tensor out = garbage({3, columns}, dtype), grad_gate_up = garbage({3, 2 * columns}, dtype);
        at::Tensor activation = garbage({3, columns}, dtype), grad_weight = garbage({3});
        swiglu_forward(out, gate_up, weight);
        swiglu_backward(grad_gate_up, activation, grad_weight, grad_out, gate_up, weight);
        at::Tensor out_exact = exact(out), grad_gate_up_exact = exact(grad_gate_up), grad_weight_exact = exact(weight);
        reference::swiglu_backward(grad_gate_up_exact, out_exact, grad_weight_exact, exact(grad_out), exact(gate_up),
                                   exact(weight));
        expect_close("out", out, out_exact, {rounding(dtype) + 8 * eps_fp32, 1e-30});
        expect_identical("activation", activation, out);
        expect_close("grad_gate_up", grad_gate_up, grad_gate_up_exact, {rounding(dtype), 8 * eps_fp32 * 40});
        const at::Tensor magnitude = (exact(grad_out) * out_exact).abs().sum(1) / exact(weight);
        expect_close("grad_weight", grad_weight, grad_weight_exact,
                     {0, (static_cast<double>(columns) / 128 + 20) * eps_fp32 * magnitude.max().item<double>()});
      }
}

TEST(KernelShapes, clamped_swiglu) {
  constexpr ClampedSwiglu shape;
  for (const at::ScalarType dtype : dtypes)
    for (const int64_t columns : row_lengths)
      for (const bool odd : {false, true}) {
        const at::Tensor gate_up = maybe_odd(random_tensor({3, 2 * columns}, dtype) * 4, odd), weight = at::rand({3});
        const at::Tensor grad_out = random_tensor({3, columns}, dtype);
        at::Tensor out = garbage({3, columns}, dtype), grad_gate_up = garbage({3, 2 * columns}, dtype);
        at::Tensor activation = garbage({3, columns}, dtype), grad_weight = garbage({3});
        clamped_swiglu_forward(out, gate_up, weight, shape);
        clamped_swiglu_backward(grad_gate_up, activation, grad_weight, grad_out, gate_up, weight, shape);
        at::Tensor out_exact = exact(out), grad_gate_up_exact = exact(grad_gate_up), grad_weight_exact = exact(weight);
        reference::clamped_swiglu_backward(grad_gate_up_exact, out_exact, grad_weight_exact, exact(grad_out),
                                           exact(gate_up), exact(weight), shape);
        expect_close("out", out, out_exact, {rounding(dtype) + 20 * eps_fp32, 20 * eps_fp32 * 7});
        expect_identical("activation", activation, out);
        expect_close("grad_gate_up", grad_gate_up, grad_gate_up_exact, {rounding(dtype), 20 * eps_fp32 * 280});
        const at::Tensor magnitude = (exact(grad_out) * out_exact).abs().sum(1) / exact(weight);
        expect_close("grad_weight", grad_weight, grad_weight_exact,
                     {0, (static_cast<double>(columns) / 128 + 40) * eps_fp32 * magnitude.max().item<double>()});
      }
}

// 12700 columns: more than shared memory holds. 1100 tokens: blocks of five rows, the last one not full.
TEST(KernelShapes, rms_norm) {
  for (const at::ScalarType dtype : dtypes)
    for (const auto& [tokens, hidden] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 2048}, {5, 4104}, {6, 4105}, {2, 12704}, {3, 12701}, {1100, 16}}) {
      const at::Tensor x = random_tensor({tokens, hidden}, dtype), weight = random_tensor({hidden}, dtype);
      const at::Tensor grad_y = random_tensor({tokens, hidden}, dtype), old = random_tensor({tokens, hidden}, dtype);
      at::Tensor y = garbage(x.sizes(), dtype), rstd = garbage({tokens}), again = garbage(x.sizes(), dtype);
      at::Tensor grad_x = old.clone(), grad_weight = at::ones({hidden});
      rms_norm_forward(y, rstd, x, weight, 1e-5);
      rms_norm_repeat(again, x, rstd, weight);
      rms_norm_backward(grad_x, grad_weight, grad_y, x, rstd, weight);
      expect_identical("repeated", again, y);
      const at::Tensor rstd_exact = at::rsqrt(exact(x).square().mean(1) + 1e-5);
      expect_close("rstd", rstd, rstd_exact, {20 * eps_fp32, 0});
      expect_close("y", y, exact(weight) * exact(x) * rstd_exact.unsqueeze(1),
                   {2 * rounding(dtype) + 24 * eps_fp32, 0});
      at::Tensor grad_x_exact = exact(old), grad_weight_exact = at::ones({hidden}, at::kDouble);
      reference::rms_norm_backward(grad_x_exact, grad_weight_exact, exact(grad_y), exact(x), exact(rstd),
                                   exact(weight));
      expect_close("grad_x", grad_x, grad_x_exact, {rounding(dtype), 40 * eps_fp32 * 20});
      const double largest = (exact(grad_y) * exact(x) * exact(rstd).unsqueeze(1)).abs().sum(0).max().item<double>();
      expect_close("grad_weight", grad_weight, grad_weight_exact, {0, 24 * eps_fp32 * (largest + 1)});
    }
}

TEST(KernelShapes, rotary_at_rows_of_whole_packs_and_not) {
  for (const at::ScalarType dtype : dtypes)
    for (const int64_t head_dim : {16, 64, 128})
      for (const int64_t behind : {0, 3, 16}) {
        const RotaryTable table = rotary_table(5, {.dims = head_dim}, at::kCPU);
        const at::Tensor qkv = random_tensor({10, 4 * head_dim + behind}, dtype);
        at::Tensor turned = qkv.clone();
        rotary_forward_(turned, 4, head_dim, table);
        const at::Tensor heads = exact(qkv).narrow(1, 0, 4 * head_dim).view({2, 5, 4, 2, head_dim / 2});
        const at::Tensor c = exact(table.cos_SD).view({1, 5, 1, -1}), s = exact(table.sin_SD).view({1, 5, 1, -1});
        const at::Tensor x1 = heads.select(3, 0), x2 = heads.select(3, 1);
        const at::Tensor expected = at::stack({x1 * c - x2 * s, x2 * c + x1 * s}, 3).reshape({10, 4 * head_dim});
        expect_close("turned", turned.narrow(1, 0, 4 * head_dim), expected, {rounding(dtype), 20 * eps_fp32});
        expect_identical("behind", turned.narrow(1, 4 * head_dim, behind), qkv.narrow(1, 4 * head_dim, behind));
        rotary_backward_(turned, 4, head_dim, table);
        expect_close("turned back", turned, qkv, {4 * rounding(dtype), 4 * eps_bf16});
      }
}

TEST(KernelShapes, cross_entropy) {
  for (const at::ScalarType dtype : dtypes)
    for (const int64_t vocabulary : {8, 4096, 8200, 8201})
      for (const bool odd : {false, true}) {
        at::Tensor logits = maybe_odd(random_tensor({4, vocabulary}, dtype) * 3, odd);
        const at::Tensor targets = random_integers(0, vocabulary, {4}, at::kLong);
        targets[1] = -100;
        at::Tensor gradient = exact(logits).clone();
        const double expected = reference::cross_entropy_with_gradient_(gradient, targets, 0.25);
        EXPECT_NEAR(cross_entropy(logits, targets), expected, 4 * 20 * eps_fp32 * 10);
        EXPECT_NEAR(cross_entropy_with_gradient_(logits, targets, 0.25), expected, 4 * 20 * eps_fp32 * 10);
        expect_close("gradient", logits, gradient, {rounding(dtype) + 40 * eps_fp32, 1e-30});
      }
}

// More losses than the block that adds them has threads.
TEST(KernelShapes, cross_entropy_of_many_tokens) {
  const at::Tensor logits = random_tensor({700, 8}), targets = random_integers(0, 8, {700}, at::kLong);
  EXPECT_NEAR(cross_entropy(logits, targets), reference::cross_entropy(exact(logits), targets), 700 * 4 * eps_fp32);
}

// Rows of every width of access, in the order of any index.
TEST(KernelShapes, rows) {
  for (const at::ScalarType dtype : dtypes)
    for (const int64_t hidden : {2, 6, 8, 2056, 4104, 4105})
      for (const bool odd : {false, true}) {
        const at::Tensor rows = maybe_odd(random_tensor({5, hidden}, dtype), odd);
        const at::Tensor index = random_integers(0, 5, {7}, at::kInt);
        at::Tensor out = garbage({7, hidden}, dtype);
        gather_rows(out, rows, index);
        expect_identical("gathered", out, rows.index_select(0, index));
        const at::Tensor weights = at::rand({5});
        at::Tensor messages = at::full({7, message_bytes(hidden, dtype)}, 255, at::kByte), plain = messages.clone();
        pack_rows(messages, rows, index, weights, index);
        reference::pack_rows(plain, rows, index, weights, index);
        expect_identical("messages", messages, plain);
        at::Tensor weight = garbage({7}), unpacked = maybe_odd(garbage({7, hidden}, dtype), odd);
        unpack_rows(unpacked, weight, messages, at::arange(7, at::kInt));
        expect_identical("unpacked", unpacked, out);
        expect_identical("weight", weight, weights.index_select(0, index));
        const at::Tensor choice = random_integers(-1, 5, {3, 2}, at::kInt);
        at::Tensor sum = rows.narrow(0, 0, 3).clone(), plain_sum = sum.clone();
        combine_rows(sum, sum, rows, choice);
        reference::combine_rows(plain_sum, plain_sum, rows, choice);
        expect_identical("combined over the residual", sum, plain_sum);
        at::Tensor token = garbage({3, hidden}, dtype), token_plain = token.clone();
        at::Tensor token_weight = garbage({3, 2}), token_weight_plain = token_weight.clone();
        combine_messages(token, token_weight, messages, choice);
        reference::combine_messages(token_plain, token_weight_plain, messages, choice);
        expect_identical("combined messages", token, token_plain);
        expect_identical("their weights", token_weight, token_weight_plain);
      }
}

// Even, all to one expert, half of the choices dropped, in descending order; over one chunk of 1024 choices and more.
TEST(KernelShapes, order_by_expert) {
  for (const int64_t tokens : {0, 1, 511, 512, 513, 1537})
    for (const int64_t experts : {1, 8, 300}) {
      const at::Tensor even = random_integers(0, experts, {tokens, 2}, at::kInt);
      const at::Tensor descending = (experts - 1 - at::arange(2 * tokens) % experts).to(at::kInt).view({tokens, 2});
      for (const at::Tensor& expert :
           {even, at::full_like(even, experts - 1), descending,
            at::where(at::rand({tokens, 2}) < 0.5, at::full_like(even, -1), even), at::full_like(even, -1)}) {
        const ExpertOrder order = order_by_expert(expert, experts), plain = reference::order_by_expert(expert, experts);
        expect_identical("choice_of_row", order.choice_of_row_R, plain.choice_of_row_R);
        expect_identical("row_of_choice", order.row_of_choice_TK, plain.row_of_choice_TK);
        expect_identical("count", order.count_E, plain.count_E);
      }
    }
}

// 700 experts: fewer warps a block. 40 choices: more than a warp has lanes.
TEST(KernelShapes, router) {
  const std::vector<RouterOptions> all = {
      {.top_k = 40},
      {.top_k = 8, .scores = RouterScores::sigmoid, .scale = 2.5, .groups = 35, .top_groups = 4},
      {.top_k = 8, .renormalize = false, .scale = 16, .groups = 35, .top_groups = 4, .best_of_group = 1}};
  for (const RouterOptions& options : all)
    for (const at::ScalarType dtype : dtypes) {
      const int64_t tokens = 9, experts = 700;
      const at::Tensor logits = random_tensor({tokens, experts}, dtype);
      const Routing routing = route(logits, options), plain = reference::route(logits, options);
      expect_close("score", routing.score_TE, plain.score_TE, {40 * eps_fp32, 0});
      // Equal but for scores that differ by a rounding: compared by what was chosen.
      const auto chosen = [](const Routing& r) { return r.score_TE.gather(1, r.expert_of_choice_TK.to(at::kLong)); };
      expect_close("chosen", chosen(routing), chosen(plain), {40 * eps_fp32, 0});
      expect_close("weight", routing.weight_TK, plain.weight_TK, {80 * eps_fp32, 0});
      const at::Tensor grad_weight = random_tensor({tokens, options.top_k}), same_for_all = random_tensor({experts});
      const double z = options.scores == RouterScores::softmax ? 0.1 : 0;
      at::Tensor grad = garbage(logits.sizes(), dtype), grad_exact = exact(grad);
      route_backward(grad, routing, options, grad_weight, same_for_all, z);
      const Routing routing_exact{exact(routing.score_TE), exact(routing.logsumexp_T), routing.expert_of_choice_TK,
                                  exact(routing.weight_TK)};
      reference::route_backward(grad_exact, routing_exact, options, exact(grad_weight), exact(same_for_all), z);
      expect_close("grad_logits", grad, grad_exact, {rounding(dtype), 60 * eps_fp32});
      const RoutingStatistics sums = routing_statistics(routing, options);
      const RoutingStatistics sums_plain = reference::routing_statistics(routing, options);
      expect_identical("count", sums.count_E, sums_plain.count_E);
      expect_close("probability", sums.probability_sum_E, sums_plain.probability_sum_E, {1e-13, 0});
    }
}

// Many of one token, none of others, one of most.
TEST(KernelShapes, embedding_backward) {
  for (const at::ScalarType dtype : dtypes)
    for (const int64_t hidden : {8, 1032, 2060})
      for (const int64_t tokens : {1, 70}) {
        const at::Tensor token = random_integers(0, 90, {tokens}, at::kLong);
        if (tokens > 40) token.narrow(0, 5, 30).fill_(3);
        const at::Tensor grad_out = random_tensor({tokens, hidden}, dtype), old = random_tensor({90, hidden});
        at::Tensor grad = old.clone(), again = old.clone();
        embedding_backward(grad, grad_out, token);
        for (int64_t t = 0; t < tokens; ++t) again[token[t].item<int64_t>()] += grad_out[t].to(at::kFloat);
        expect_identical("in token order", grad, again);
      }
}

TEST(KernelShapes, flat_shards) {
  for (const int64_t count : {1024, 1028, 16384, 16385, 70000})
    for (const bool odd : {false, true}) {
      at::Tensor parameter = maybe_odd(random_tensor({count}), odd), grad = random_tensor({count});
      at::Tensor mean = random_tensor({count}), square = at::rand({count});
      at::Tensor parameter_exact = exact(parameter), mean_exact = exact(mean), square_exact = exact(square);
      const AdamwStep step{.lr = 0.1, .weight_decay = 0.1, .step = 3, .grad_scale = 0.5};
      adamw_step(parameter, mean, square, grad, step);
      reference::adamw_step(parameter_exact, mean_exact, square_exact, exact(grad), step);
      expect_close("exp_avg", mean, mean_exact, {0, 12 * eps_fp32});
      expect_close("exp_avg_sq", square, square_exact, {8 * eps_fp32, 0});
      expect_close("parameter", parameter, parameter_exact, {4 * eps_fp32, 20 * eps_fp32 * 5});
      EXPECT_NEAR(sum_of_squares(parameter), exact(parameter).square().sum().item<double>(), 1e-9);
    }
}

}  // namespace
}  // namespace conclave
