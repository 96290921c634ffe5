// Dispatch between processes against dispatch on one rank. Every rank can compute every rank's tokens and choices, so
// it knows alone what it must get. Experts are replaced by a formula of each row and its expert alone, so that equality
// is bit for bit: no tolerance.
#include <ATen/ATen.h>

#include "comm/local_communicator.h"
#include "dispatch_at_once.h"
#include "dist/world.h"
#include "moe/all_to_all_dispatcher.h"
#include "moe/balancing.h"
#include "moe/local_dispatcher.h"
#include "moe/sinkhorn_selection.h"

namespace conclave {
namespace {

using testing::run_ranks;

enum class Routes { random, skewed, one_rank_empty, all_empty };
constexpr Routes all_routes[] = {Routes::random, Routes::skewed, Routes::one_rank_empty, Routes::all_empty};
constexpr uint64_t seed = 5;

struct Tokens {
  at::Tensor token_TH, residual_TH, grad_TH, weight_TK, expert_TK;
};

Tokens tokens_of(int rank, int64_t experts, int64_t top_k, Routes routes, at::ScalarType dtype) {
  at::Generator generator = at::detail::createCPUGenerator(seed + 100 * static_cast<uint64_t>(rank));
  const int64_t hidden = 11;
  const bool empty = routes == Routes::all_empty || (routes == Routes::one_rank_empty && rank == 1);
  const int64_t tokens = empty ? 0 : 17 + 3 * rank;
  const auto normal = [&](at::IntArrayRef sizes) { return at::randn(sizes, generator); };
  Tokens made{normal({tokens, hidden}).to(dtype), normal({tokens, hidden}).to(dtype),
              normal({tokens, hidden}).to(dtype), at::softmax(normal({tokens, top_k}), 1),
              at::empty({tokens, top_k}, at::kInt)};
  for (int64_t t = 0; t < tokens; ++t)  // skewed: all choices on the first experts, most ranks get nothing
    made.expert_TK[t].copy_(routes == Routes::skewed ? at::arange(top_k, at::kInt)
                                                     : at::randperm(experts, generator).narrow(0, 0, top_k));
  return made;
}

// Stands for an expert: its output and its gradients are a formula of the row, the weight and the expert's number.
ExpertRows expert_formula(const ExpertRows& rows, const std::vector<int64_t>& rows_per_expert, int64_t first_expert) {
  ExpertRows out{at::empty_like(rows.row_RH), at::empty_like(rows.weight_R)};
  int64_t begin = 0;
  for (size_t i = 0; i < rows_per_expert.size(); ++i) {
    const int64_t count = rows_per_expert[i];
    const float factor = 1.0f + 0.37f * static_cast<float>(first_expert + static_cast<int64_t>(i));
    const at::Tensor weight = rows.weight_R.narrow(0, begin, count);
    out.row_RH.narrow(0, begin, count)
        .copy_(rows.row_RH.narrow(0, begin, count).to(at::kFloat) * (weight * factor).unsqueeze(1));
    out.weight_R.narrow(0, begin, count)
        .copy_(weight * factor + rows.row_RH.narrow(0, begin, count).select(1, 0).to(at::kFloat));
    begin += count;
  }
  return out;
}

struct Results {
  DispatchPlan plan;
  ExpertRows rows;
  at::Tensor out_TH, grad_RH;
  DispatchGradient grad;
};

Results run(Dispatcher& dispatcher, const Tokens& tokens, int64_t first_expert) {
  Results results;
  results.plan = dispatcher.plan(tokens.expert_TK);
  results.rows = dispatch(dispatcher, results.plan, tokens.token_TH, tokens.weight_TK);
  results.out_TH = combine(dispatcher, results.plan, tokens.residual_TH,
                           expert_formula(results.rows, results.plan.rows_per_expert, first_expert).row_RH);
  results.grad_RH = combine_backward(dispatcher, results.plan, tokens.grad_TH);
  results.grad = dispatch_backward(
      dispatcher, results.plan,
      expert_formula({results.grad_RH, results.rows.weight_R}, results.plan.rows_per_expert, first_expert));
  return results;
}

// What a rank's experts must receive: by expert, then source rank, then source position, out of what each source has
// alone.
at::Tensor rows_of_experts(const std::vector<Results>& alone, int64_t first, int64_t last,
                           const std::function<at::Tensor(const Results&)>& rows) {
  std::vector<at::Tensor> parts;
  for (int64_t expert = first; expert < last; ++expert)
    for (const Results& source : alone) {
      int64_t begin = 0;
      for (int64_t before = 0; before < expert; ++before) begin += source.plan.rows_per_expert[before];
      parts.push_back(rows(source).narrow(0, begin, source.plan.rows_per_expert[expert]));
    }
  return at::cat(parts);
}

AxisGroup everyone(const World& world) {
  AxisGroup group{{}, world.rank()};
  for (int rank = 0; rank < world.size(); ++rank) group.ranks.push_back(rank);
  return group;
}

class Dispatch : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Worlds, Dispatch, ::testing::Values(2, 3, 4));

TEST_P(Dispatch, between_ranks_equals_dispatch_on_one_rank) {
  run_ranks(GetParam(), [](World& world) {
    const auto expert_axis = world.communicator(everyone(world), "expert");
    for (const Routes routes : all_routes)
      for (const int64_t local : {1, 3})
        for (const int64_t top_k : {1, 2})
          for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
            SCOPED_TRACE(fmt::format("seed {}, routes {}, experts of a rank {}, K {}, {}", seed,
                                     static_cast<int>(routes), local, top_k, c10::toString(dtype)));
            const int64_t experts = local * world.size(), first = local * world.rank();
            std::vector<Results> alone;
            for (int rank = 0; rank < world.size(); ++rank) {
              LocalDispatcher dispatcher(experts);
              alone.push_back(run(dispatcher, tokens_of(rank, experts, top_k, routes, dtype), 0));
            }
            const Results& expected = alone[world.rank()];
            StepClock clock(0);
            AllToAllDispatcher dispatcher(*expert_axis, experts, clock);
            const Results actual = run(dispatcher, tokens_of(world.rank(), experts, top_k, routes, dtype), first);

            const auto of_experts = [&](const auto& rows) {
              return rows_of_experts(alone, first, first + local, rows);
            };
            EXPECT_TRUE(actual.rows.row_RH.equal(of_experts([](const Results& r) { return r.rows.row_RH; })));
            EXPECT_TRUE(actual.rows.weight_R.equal(of_experts([](const Results& r) { return r.rows.weight_R; })));
            EXPECT_TRUE(actual.grad_RH.equal(of_experts([](const Results& r) { return r.grad_RH; })));
            EXPECT_TRUE(actual.out_TH.equal(expected.out_TH));
            EXPECT_TRUE(actual.grad.token_TH.equal(expected.grad.token_TH));
            EXPECT_TRUE(actual.grad.weight_TK.equal(expected.grad.weight_TK));
            for (int64_t i = 0; i < local; ++i) {
              int64_t rows = 0;
              for (const Results& source : alone) rows += source.plan.rows_per_expert[first + i];
              EXPECT_EQ(actual.plan.rows_per_expert[i], rows);
            }
          }
  });
}

// Oracle: one rank that has all tokens. Equal but for the order of sums in double; the same bits on every rank, asked
// by a maximum over the ranks of the value and of its negative.
TEST_P(Dispatch, balance_spans_the_tokens_of_all_ranks) {
  run_ranks(GetParam(), [](World& world) {
    const auto all = world.communicator(everyone(world), "world");
    constexpr int64_t experts = 7, layers = 2, top_k = 2;
    std::vector<RoutingStatistics> own, sum;
    int64_t own_tokens = 0, tokens = 0;
    for (int64_t layer = 0; layer < layers; ++layer) {
      sum.push_back({at::zeros({experts}, at::kDouble), at::zeros({experts}, at::kDouble), at::zeros({}, at::kDouble),
                     at::zeros({}, at::kDouble)});
      for (int rank = 0; rank < world.size(); ++rank) {
        const int64_t count = rank == 1 ? 0 : 5 + rank;
        at::Generator generator = at::detail::createCPUGenerator(seed + static_cast<uint64_t>(10 * rank + layer));
        const RouterOptions router{.top_k = top_k};
        const RoutingStatistics statistics =
            routing_statistics(route(at::randn({count, experts}, generator), router), router);
        sum[layer].count_E += statistics.count_E;
        sum[layer].probability_sum_E += statistics.probability_sum_E;
        sum[layer].logsumexp_square_sum += statistics.logsumexp_square_sum;
        sum[layer].confidence_sum += statistics.confidence_sum;
        if (layer == 0) tokens += count;
        if (rank != world.rank()) continue;
        own.push_back(statistics);
        own_tokens = count;
      }
    }
    const Balance balance = BalanceReduction(*all, own, own_tokens, at::kCPU).finish();
    const double rows = static_cast<double>(layers * tokens);
    const at::Tensor count_E = sum[0].count_E + sum[1].count_E;
    const double aux =
        experts * (count_E * (sum[0].probability_sum_E + sum[1].probability_sum_E)).sum().item<double>() / rows / rows;
    const double z = (sum[0].logsumexp_square_sum + sum[1].logsumexp_square_sum).item<double>() / rows;
    EXPECT_EQ(balance.tokens, tokens);
    EXPECT_TRUE(balance.count_LE[0].equal(sum[0].count_E));
    EXPECT_TRUE(balance.count_LE[1].equal(sum[1].count_E));
    EXPECT_NEAR(balance.aux_loss, aux, 1e-13 * aux);
    EXPECT_NEAR(balance.z_loss, z, 1e-13 * z);
    for (int64_t layer = 0; layer < layers; ++layer)
      EXPECT_NEAR(balance.confidence_L[layer].item<double>(),
                  sum[layer].confidence_sum.item<double>() / static_cast<double>(tokens), 1e-13);
    const at::Tensor values = at::tensor({balance.aux_loss, balance.z_loss}, at::kDouble);
    const at::Tensor extremes = at::cat({values, -values});
    all->all_reduce(extremes, Reduction::max).wait();
    EXPECT_TRUE(extremes.equal(at::cat({values, -values})));
  });
}

// Oracle: each rank's loss by the formula over its own tokens, in one process, then the mean over the ranks (one of
// which has none). Equal but for the order of sums in double.
TEST_P(Dispatch, balance_of_each_rank_is_the_mean_of_their_own) {
  run_ranks(GetParam(), [](World& world) {
    const auto all = world.communicator(everyone(world), "world");
    constexpr int64_t experts = 5, layers = 2, top_k = 2;
    const RouterOptions router{.top_k = top_k};
    double expected = 0;
    std::vector<RoutingStatistics> own;
    at::Tensor own_count_E;
    double own_rows = 0;
    for (int rank = 0; rank < world.size(); ++rank) {
      const int64_t count = rank == 1 ? 0 : 6 + rank;
      std::vector<RoutingStatistics> statistics;
      at::Tensor count_E = at::zeros({experts}, at::kDouble), probability_E = at::zeros({experts}, at::kDouble);
      for (int64_t layer = 0; layer < layers; ++layer) {
        at::Generator generator = at::detail::createCPUGenerator(seed + static_cast<uint64_t>(10 * rank + layer));
        statistics.push_back(routing_statistics(route(at::randn({count, experts}, generator), router), router));
        count_E += statistics.back().count_E;
        probability_E += statistics.back().probability_sum_E;
      }
      const auto rows = static_cast<double>(layers * count);
      if (count > 0) expected += experts * (count_E * probability_E).sum().item<double>() / rows / rows / world.size();
      if (rank == world.rank()) {
        own = statistics;
        own_count_E = count_E;
        own_rows = rows;
      }
    }
    const auto tokens = static_cast<int64_t>(own_rows) / layers;
    const Balance balance = BalanceReduction(*all, own, tokens, at::kCPU, {.scope = AuxLossScope::each_rank}).finish();
    EXPECT_NEAR(balance.aux_loss, expected, 1e-13 * expected);
    const at::Tensor gradient_E =
        tokens == 0 ? at::zeros({experts}, at::kDouble) : own_count_E * (experts / own_rows / own_rows / world.size());
    for (int64_t layer = 0; layer < layers; ++layer)
      EXPECT_TRUE(at::allclose(balance.aux_gradient_LE[layer].to(at::kDouble), gradient_E, 1e-6, 0));
  });
}

// Oracle: one rank that has all tokens. Not a bit may differ: demands are summed in integers.
TEST_P(Dispatch, sinkhorn_chooses_alike_on_any_number_of_ranks) {
  run_ranks(GetParam(), [](World& world) {
    const auto all = world.communicator(everyone(world), "world");
    LocalCommunicator alone("world");
    for (const int64_t experts : {2, 8, 33})
      for (const int64_t top_k : {1, 2}) {
        SCOPED_TRACE(fmt::format("seed {}, E={} K={}", seed, experts, top_k));
        at::Generator generator = at::detail::createCPUGenerator(seed);
        std::vector<at::Tensor> parts;
        for (int rank = 0; rank < world.size(); ++rank)  // rank 1 has no token
          parts.push_back(at::randn({rank == 1 ? 0 : 20 + rank, experts}, generator) - at::arange(experts) * 0.5);
        SinkhornSelection between({.top_k = top_k}, {}, *all);
        SinkhornSelection single({.top_k = top_k}, {}, alone);
        const at::Tensor expected = single.route_in_training(0, at::cat(parts), {}).expert_of_choice_TK;
        const at::Tensor actual = between.route_in_training(0, parts[world.rank()], {}).expert_of_choice_TK;
        int64_t begin = 0;
        for (int rank = 0; rank < world.rank(); ++rank) begin += parts[rank].size(0);
        EXPECT_TRUE(actual.equal(expected.narrow(0, begin, actual.size(0))));
      }
  });
}

}  // namespace
}  // namespace conclave
