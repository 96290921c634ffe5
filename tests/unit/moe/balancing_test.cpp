#include "moe/balancing.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "comm/local_communicator.h"

namespace conclave {
namespace {

constexpr uint64_t seed = 11;

struct Layers {
  std::vector<at::Tensor> probability_TE;  // double
  std::vector<at::Tensor> logsumexp_T;     // double
  std::vector<at::Tensor> expert_TK;       // long
  int64_t tokens, experts;
};

Layers random_layers(int64_t layers, int64_t tokens, int64_t experts, int64_t top_k) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  Layers made{{}, {}, {}, tokens, experts};
  for (int64_t layer = 0; layer < layers; ++layer) {
    const at::Tensor logits = at::randn({tokens, experts}, generator, at::kDouble) * 2;
    made.probability_TE.push_back(at::softmax(logits, 1));
    made.logsumexp_T.push_back(at::logsumexp(logits, {1}));
    made.expert_TK.push_back(std::get<1>(at::topk(logits, top_k, 1)));
  }
  return made;
}

// The confidence is nobody's concern in these.
RoutingStatistics statistics_of(const at::Tensor& count_E, const at::Tensor& probability_sum_E, double squares = 0) {
  return {count_E, probability_sum_E, at::scalar_tensor(squares, at::kDouble), at::zeros({}, at::kDouble)};
}

std::vector<RoutingStatistics> statistics_of(const Layers& layers) {
  std::vector<RoutingStatistics> statistics;
  for (size_t i = 0; i < layers.probability_TE.size(); ++i)
    statistics.push_back({at::bincount(layers.expert_TK[i].flatten(), {}, layers.experts).to(at::kDouble),
                          layers.probability_TE[i].sum(0), layers.logsumexp_T[i].square().sum(),
                          layers.probability_TE[i].amax(1).sum()});
  return statistics;
}

// Transformers' load_balancing_loss_func, one element after the other: the mean over all rows of the one-hot choices
// and of the probabilities, multiplied, summed over choices and experts, times E.
double direct_aux_loss(const Layers& layers) {
  const double rows = static_cast<double>(layers.tokens) * static_cast<double>(layers.probability_TE.size());
  double aux = 0;
  for (int64_t expert = 0; expert < layers.experts; ++expert) {
    double chosen = 0, probability = 0;
    for (size_t layer = 0; layer < layers.probability_TE.size(); ++layer) {
      const auto probability_TE = layers.probability_TE[layer].accessor<double, 2>();
      const auto expert_TK = layers.expert_TK[layer].accessor<int64_t, 2>();
      for (int64_t t = 0; t < layers.tokens; ++t) {
        probability += probability_TE[t][expert] / rows;
        for (int64_t k = 0; k < expert_TK.size(1); ++k) chosen += (expert_TK[t][k] == expert ? 1 : 0) / rows;
      }
    }
    aux += chosen * probability;
  }
  return aux * static_cast<double>(layers.experts);
}

double direct_z_loss(const Layers& layers) {
  double sum = 0;
  for (const at::Tensor& logsumexp : layers.logsumexp_T)
    for (int64_t t = 0; t < layers.tokens; ++t) sum += logsumexp[t].item<double>() * logsumexp[t].item<double>();
  return sum / (static_cast<double>(layers.tokens) * static_cast<double>(layers.logsumexp_T.size()));
}

// One layer's.
Layers only(const Layers& layers, size_t layer) {
  return {{layers.probability_TE[layer]},
          {layers.logsumexp_T[layer]},
          {layers.expert_TK[layer]},
          layers.tokens,
          layers.experts};
}

// The mean over the layers of each one's loss.
double direct_aux_loss_of_each(const Layers& layers) {
  double sum = 0;
  for (size_t layer = 0; layer < layers.probability_TE.size(); ++layer) sum += direct_aux_loss(only(layers, layer));
  return sum / static_cast<double>(layers.probability_TE.size());
}

Balance balance_of(const Layers& layers, AuxLossLayers of = AuxLossLayers::together) {
  LocalCommunicator world("world");
  return BalanceReduction(world, statistics_of(layers), layers.tokens, at::kCPU, {.layers = of}).finish();
}

// Tolerance: sums of at most 200 terms in double in another order.
TEST(Balance, equals_the_direct_formula) {
  struct Shape {
    int64_t layers, tokens, experts, top_k;
  };
  for (const Shape& s :
       {Shape{1, 1, 1, 1}, Shape{1, 17, 8, 2}, Shape{3, 20, 7, 3}, Shape{2, 9, 64, 4}, Shape{4, 1, 5, 1}}) {
    SCOPED_TRACE(fmt::format("seed {}: L={} T={} E={} K={}", seed, s.layers, s.tokens, s.experts, s.top_k));
    const Layers layers = random_layers(s.layers, s.tokens, s.experts, s.top_k);
    const Balance balance = balance_of(layers);
    EXPECT_NEAR(balance.aux_loss, direct_aux_loss(layers), 1e-12 * direct_aux_loss(layers));
    EXPECT_NEAR(balance.z_loss, direct_z_loss(layers), 1e-12 * direct_z_loss(layers));
    EXPECT_NEAR(balance_of(layers, AuxLossLayers::each).aux_loss, direct_aux_loss_of_each(layers),
                1e-12 * direct_aux_loss_of_each(layers));
    for (int64_t layer = 0; layer < s.layers; ++layer) {
      const Layers one = only(layers, layer);
      EXPECT_NEAR(balance.aux_loss_L[layer].item<double>(), direct_aux_loss(one), 1e-12 * direct_aux_loss(one));
      EXPECT_NEAR(balance.z_loss_L[layer].item<double>(), direct_z_loss(one), 1e-12 * direct_z_loss(one));
      EXPECT_NEAR(balance.confidence_L[layer].item<double>(),
                  layers.probability_TE[layer].amax(1).mean().item<double>(), 1e-12);
    }
    EXPECT_EQ(balance.tokens, s.tokens);
    EXPECT_EQ(balance.count_LE.sizes(), (at::IntArrayRef{s.layers, s.experts}));
    EXPECT_EQ(balance.count_LE.sum().item<double>(), static_cast<double>(s.layers * s.tokens * s.top_k));
  }
}

// The losses are linear in a probability and in logsumexp^2, so a central difference is exact but for cancellation:
// 1e-16 / 1e-3 relative to the loss; the gradient is stored in fp32: eps.
TEST(Balance, gradients_are_the_central_difference) {
  const Layers layers = random_layers(3, 10, 6, 2);
  constexpr double step = 1e-3;
  for (const AuxLossLayers of : {AuxLossLayers::together, AuxLossLayers::each}) {
    const Balance balance = balance_of(layers, of);
    EXPECT_EQ(balance.aux_gradient_LE.scalar_type(), at::kFloat);
    for (const int64_t layer : {0, 2})
      for (const int64_t t : {0, 9})
        for (int64_t expert = 0; expert < 6; ++expert) {
          const auto loss = [&](double by) {
            Layers moved = layers;
            moved.probability_TE[layer] = layers.probability_TE[layer].clone();
            moved.probability_TE[layer][t][expert] += by;
            return of == AuxLossLayers::together ? direct_aux_loss(moved) : direct_aux_loss_of_each(moved);
          };
          const double difference = (loss(step) - loss(-step)) / (2 * step);
          EXPECT_NEAR(balance.aux_gradient_LE[layer][expert].item<float>(), difference,
                      1e-11 + std::abs(difference) / (1 << 23));
        }
  }
  const Balance balance = balance_of(layers);
  const auto z_loss = [&](double by) {  // of logsumexp[1][4]^2
    Layers moved = layers;
    moved.logsumexp_T[1] = layers.logsumexp_T[1].clone();
    moved.logsumexp_T[1][4] = (layers.logsumexp_T[1][4].square() + by).sqrt();
    return direct_z_loss(moved);
  };
  EXPECT_NEAR(balance.z_gradient, (z_loss(step) - z_loss(-step)) / (2 * step), 1e-11);
}

// Even routing with even probabilities gives top_k, all on one expert gives E times its probability.
TEST(Balance, closed_values) {
  LocalCommunicator world("world");
  const RoutingStatistics even = statistics_of(at::full({4}, 4.0, at::kDouble), at::full({4}, 2.0, at::kDouble));
  EXPECT_DOUBLE_EQ(BalanceReduction(world, {even, even}, 8, at::kCPU).finish().aux_loss, 2.0);
  const RoutingStatistics one =
      statistics_of(at::tensor({8.0, 0.0, 0.0, 0.0}, at::kDouble), at::tensor({8.0, 0.0, 0.0, 0.0}, at::kDouble), 72.0);
  const Balance balance = BalanceReduction(world, {one}, 8, at::kCPU).finish();
  EXPECT_DOUBLE_EQ(balance.aux_loss, 4.0);
  EXPECT_DOUBLE_EQ(balance.z_loss, 9.0);
}

// Two layers that are uneven in opposite directions are even together, and as uneven as one alone each.
TEST(Balance, opposite_layers_cost_nothing_together) {
  LocalCommunicator world("world");
  const RoutingStatistics left =
      statistics_of(at::tensor({8.0, 0.0}, at::kDouble), at::tensor({8.0, 0.0}, at::kDouble));
  const RoutingStatistics right =
      statistics_of(at::tensor({0.0, 8.0}, at::kDouble), at::tensor({0.0, 8.0}, at::kDouble));
  const auto loss = [&](AuxLossLayers of) {
    return BalanceReduction(world, {left, right}, 8, at::kCPU, {.layers = of}).finish().aux_loss;
  };
  EXPECT_DOUBLE_EQ(loss(AuxLossLayers::together), 1.0);
  EXPECT_DOUBLE_EQ(loss(AuxLossLayers::each), 2.0);
}

TEST(Balance, refuses_a_micro_step_without_tokens) {
  LocalCommunicator world("world");
  const RoutingStatistics none = statistics_of(at::zeros({4}, at::kDouble), at::zeros({4}, at::kDouble));
  EXPECT_THROW(BalanceReduction(world, {none}, 0, at::kCPU).finish(), InvariantError);
}

}  // namespace
}  // namespace conclave
