#include "optim/optimizer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "comm/local_communicator.h"

namespace conclave {
namespace {

OptimizerConfig config_with_clip(double grad_clip) {
  OptimizerConfig config;
  config.grad_clip = grad_clip;
  config.weight_decay = 0.1;
  return config;
}

Optimizer optimizer_of(const OptimizerConfig& config, std::vector<OptimizerUnit> units) {
  return Optimizer(make_optimizer_rule(config), config.grad_clip, std::move(units));
}

OptimizerRange range_of(int64_t numel, uint64_t seed, bool decay) {
  at::Generator generator = at::detail::createCPUGenerator(seed);
  return {
      at::randn({numel}, generator), {at::zeros({numel}), at::zeros({numel})}, at::randn({numel}, generator), decay};
}

// One AdamW update of each element in double, after the paper, from zero moments.
at::Tensor expected_first_update(const OptimizerRange& range, const OptimizerConfig& config, double lr, double scale) {
  at::Tensor expected = range.parameter.to(at::kDouble).clone();
  const at::Tensor gradient = range.gradient.to(at::kDouble);
  auto* p = expected.data_ptr<double>();
  const auto* g = gradient.const_data_ptr<double>();
  for (int64_t i = 0; i < expected.numel(); ++i) {
    const double scaled = g[i] * scale;
    const double m = (1 - config.beta1) * scaled / (1 - config.beta1);
    const double v = (1 - config.beta2) * scaled * scaled / (1 - config.beta2);
    if (range.decay) p[i] -= lr * config.weight_decay * p[i];
    p[i] -= lr * m / (std::sqrt(v) + config.eps);
  }
  return expected;
}

// The first update barely feels a scale (m / sqrt(v) cancels it), so the moments are what shows clipping.
// Tolerance: the moments are one product and one rounding each: 4 eps; the parameter errs by eps of itself and a few of
// lr.
TEST(Optimizer, clips_by_the_global_norm) {
  struct Case {
    double grad_clip, norm, scale;
  };
  for (const Case& c : {Case{1.0, 4.0, 1.0 / (4.0 + 1e-6)}, Case{1.0, 0.5, 1.0}, Case{0.0, 4.0, 1.0},
                        Case{2.5, 1e6, 2.5 / (1e6 + 1e-6)}, Case{1.0, 0.0, 1.0}}) {
    SCOPED_TRACE("clip " + std::to_string(c.grad_clip) + ", norm " + std::to_string(c.norm));
    OptimizerRange range = range_of(37, 7, true);
    const OptimizerConfig config = config_with_clip(c.grad_clip);
    const at::Tensor expected = expected_first_update(range, config, 1e-3, c.scale);
    const at::Tensor gradient = range.gradient.to(at::kDouble) * c.scale;
    Optimizer optimizer = optimizer_of(config, {{{range}, {range.gradient}}});
    optimizer.update(1e-3, 1, c.norm);
    EXPECT_TRUE(at::allclose(range.state[0].to(at::kDouble), gradient * (1 - config.beta1), 5e-7, 0));
    EXPECT_TRUE(at::allclose(range.state[1].to(at::kDouble), gradient.square() * (1 - config.beta2), 1e-6, 1e-37));
    EXPECT_TRUE(at::allclose(range.parameter.to(at::kDouble), expected, 2e-7, 1e-8));
  }
}

TEST(Optimizer, decays_only_what_is_declared_to_decay) {
  const OptimizerConfig config = config_with_clip(0);
  OptimizerRange decayed = range_of(20, 1, true), kept = range_of(20, 2, false);
  decayed.gradient.zero_();
  kept.gradient.zero_();
  const at::Tensor decayed_before = decayed.parameter.clone(), kept_before = kept.parameter.clone();
  optimizer_of(config, {{{decayed, kept}, {}}}).update(0.5, 1, 0.0);
  EXPECT_TRUE(kept.parameter.equal(kept_before));
  EXPECT_TRUE(at::allclose(decayed.parameter, decayed_before * (1 - 0.5 * 0.1), 2e-7, 0));
}

// Oracle: integers, whose squares sum exactly. What is not counted here does not count.
TEST(Optimizer, gradient_squares_by_unit) {
  OptimizerRange first = range_of(5, 1, true), second = range_of(3, 2, true), replica = range_of(4, 3, true);
  first.gradient.copy_(at::tensor({1.f, -2.f, 3.f, 0.f, 1.f}));
  second.gradient.copy_(at::tensor({4.f, 0.f, -1.f}));
  LocalCommunicator world("world");
  const Optimizer optimizer = optimizer_of(
      {}, {{{first, second}, {first.gradient, second.gradient}}, {{replica}, {}}, {{}, {second.gradient}}});
  EXPECT_EQ(optimizer.gradient_squares(world, at::kCPU), (std::vector<double>{32, 0, 17}));
  second.gradient[1] = std::numeric_limits<float>::infinity();
  EXPECT_FALSE(std::isfinite(optimizer.gradient_squares(world, at::kCPU)[2]));
}

}  // namespace
}  // namespace conclave
