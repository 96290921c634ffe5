#include "sharding/flat_parameter.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "comm/local_communicator.h"
#include "fake_communicator.h"

namespace conclave {
namespace {

constexpr uint64_t seed = 1234;

std::vector<ParameterDeclaration> dense_parameters() {
  return {{"norm", {13}, ParameterKind::dense, 1.0f, 0.0f, false},
          {"projection", {29, 13}, ParameterKind::dense, 0.0f, 0.02f},
          {"shifted", {7, 11}, ParameterKind::dense, 0.5f, 0.1f}};
}

std::vector<ParameterDeclaration> expert_parameters() {
  return {{"experts.gate_up", {12, 10, 7}, ParameterKind::expert, 0.0f, 0.02f},
          {"experts.down", {12, 7, 5}, ParameterKind::expert, 0.0f, 0.02f}};
}

// The global parameters as one rank of degree 1 has them.
std::vector<at::Tensor> initialized_alone(const std::vector<ParameterDeclaration>& parameters) {
  LocalCommunicator shard("shard"), replica("replica");
  FlatParameter group(parameters, 0, 1, shard, replica, {});
  group.allocate_parameters();
  group.initialize(seed);
  std::vector<at::Tensor> values;
  for (const FlatLayout::Placement& placement : group.layout().placements())
    values.push_back(group.parameter_shard.narrow(0, placement.offset, placement.numel).clone());
  return values;
}

// Oracle: degree 1. Bit-equal: the values are a pure function of (seed, name, index). Padding must be zero.
void expect_same_on_every_rank(const std::vector<ParameterDeclaration>& parameters, int expert_degree, int degree) {
  const std::vector<at::Tensor> expected = initialized_alone(parameters);
  for (int expert = 0; expert < expert_degree; ++expert)
    for (int rank = 0; rank < degree; ++rank) {
      FakeCommunicator shard("shard", rank, degree);
      LocalCommunicator replica("replica");
      FlatParameter group(parameters, expert, expert_degree, shard, replica, {});
      group.allocate_parameters();
      group.initialize(seed);
      at::Tensor padding = group.parameter_shard.clone();
      for (const FlatLayout::Slice& slice : group.layout().slices(rank)) {
        const at::Tensor actual = group.parameter_shard.narrow(0, slice.shard_offset, slice.numel);
        ASSERT_TRUE(actual.equal(expected[slice.parameter].narrow(0, slice.begin, slice.numel)))
            << parameters[slice.parameter].name << " from element " << slice.begin << ", rank " << rank << " of "
            << degree << ", expert index " << expert << " of " << expert_degree;
        padding.narrow(0, slice.shard_offset, slice.numel).zero_();
      }
      ASSERT_EQ(padding.count_nonzero().item<int64_t>(), 0) << "rank " << rank << " of " << degree;
    }
}

TEST(FlatParameter, initial_values_do_not_depend_on_the_layout) {
  for (const int degree : {1, 2, 3, 5, 8, 64}) expect_same_on_every_rank(dense_parameters(), 1, degree);
  for (const int expert_degree : {1, 2, 3, 12})
    for (const int degree : {1, 2, 5}) expect_same_on_every_rank(expert_parameters(), expert_degree, degree);
}

// Against the test above passing on zeros or on one value for all: what was declared is there. Tolerance of mean and
// deviation: five standard errors of the sample.
TEST(FlatParameter, initial_values_are_as_declared) {
  const std::vector<at::Tensor> values = initialized_alone(dense_parameters());
  EXPECT_TRUE(values[0].equal(at::ones({13})));
  EXPECT_NEAR(values[1].mean().item<double>(), 0.0, 5 * 0.02 / std::sqrt(377.0));
  EXPECT_NEAR(values[1].std().item<double>(), 0.02, 5 * 0.02 / std::sqrt(2 * 377.0));
  EXPECT_NEAR(values[2].mean().item<double>(), 0.5, 5 * 0.1 / std::sqrt(77.0));
}

// Oracle: the stream as one thread fills it.
TEST(FlatParameter, initial_values_do_not_depend_on_the_threads) {
  const int before = at::get_num_threads();
  const std::vector<ParameterDeclaration> parameters = {{"wide", {500, 401}, ParameterKind::dense, 0.1f, 0.02f}};
  at::Tensor expected = at::empty({500 * 401});
  at::set_num_threads(1);
  fill_normal({expected.data_ptr<float>(), static_cast<size_t>(expected.numel())}, seed, random_stream("wide"), 0, 0.1f,
              0.02f);
  for (const int threads : {1, 2, 5}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(initialized_alone(parameters)[0].equal(expected)) << threads << " threads";
  }
  at::set_num_threads(before);
}

// Oracle: the declared shapes over the shard's values; the compute dtype is one rounding of them.
TEST(FlatParameter, weights_are_views_in_the_compute_dtype) {
  const std::vector<at::Tensor> expected = initialized_alone(dense_parameters());
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    LocalCommunicator shard("shard"), replica("replica");
    FlatParameter group(dense_parameters(), 0, 1, shard, replica, {dtype});
    group.allocate_parameters();
    group.initialize(seed);
    EXPECT_THROW(group.weights(), InvariantError);
    group.begin_unshard();
    EXPECT_THROW(group.weights(), InvariantError) << "a gather in flight must not be read";
    group.finish_unshard();
    const std::vector<at::Tensor>& weights = group.weights();
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(weights[i].sizes().vec(), dense_parameters()[i].shape);
      EXPECT_TRUE(weights[i].flatten().equal(expected[i].to(dtype))) << i;
    }
    group.reshard();
    EXPECT_EQ(group.state(), ParameterState::sharded);
    EXPECT_THROW(group.weights(), InvariantError);
  }
}

// For readers that round, a whole shard is not copied; a part is gathered in the compute dtype as ever.
TEST(FlatParameter, weights_are_the_whole_shard_itself_for_readers_that_round) {
  for (const int degree : {1, 2}) {
    FakeCommunicator shard("shard", 0, degree);
    LocalCommunicator replica("replica");
    FlatParameter group(dense_parameters(), 0, 1, shard, replica,
                        {.compute_dtype = at::kBFloat16, .readers_round = true});
    group.allocate_parameters();
    group.begin_unshard();
    group.finish_unshard();
    EXPECT_EQ(group.weights().front().scalar_type(), degree == 1 ? at::kFloat : at::kBFloat16);
    EXPECT_EQ(group.weights().front().storage().is_alias_of(group.parameter_shard.storage()), degree == 1);
  }
}

// Gradients of three micro-steps, small integers, so that sums are exact in any order and dtype. Oracle: the sum of
// this rank's part (FakeCommunicator gives each rank its own part); padding stays zero. A second step starts anew.
TEST(FlatParameter, gradients_add_up_over_micro_steps_and_start_anew) {
  for (const int degree : {1, 2, 3})
    for (const at::ScalarType reduce_dtype : {at::kFloat, at::kBFloat16})
      for (int rank = 0; rank < degree; ++rank) {
        FakeCommunicator shard("shard", rank, degree);
        LocalCommunicator replica("replica");
        FlatParameter group(dense_parameters(), 0, 1, shard, replica, {at::kFloat, reduce_dtype});
        group.allocate_parameters();
        group.allocate_training_state();
        group.gradient_shard.narrow(0, 0, 3).fill_(99);  // of an earlier step
        for (int step = 0; step < 2; ++step) {
          std::vector<at::Tensor> sum;
          for (const ParameterDeclaration& parameter : group.parameters())
            sum.push_back(at::zeros({parameter.numel()}));
          for (int micro_step = 0; micro_step < 3; ++micro_step) {
            std::vector<Gradient> gradients = group.gradients();
            for (size_t i = 0; i < gradients.size(); ++i) {
              const int64_t numel = group.parameters()[i].numel();
              const at::Tensor value = (at::arange(numel, at::kFloat) + (micro_step + 5 * step)).remainder(7);
              sum[i] += value;
              gradients[i].zeroed().view(-1).add_(value);
            }
            group.begin_reduce(micro_step == 0, micro_step == 2);
            EXPECT_TRUE(group.is_reducing());
            group.finish_reduce();
          }
          at::Tensor rest = group.gradient_shard.clone();
          for (const FlatLayout::Slice& slice : group.layout().slices(rank)) {
            at::Tensor part = rest.narrow(0, slice.shard_offset, slice.numel);
            EXPECT_TRUE(part.equal(sum[slice.parameter].narrow(0, slice.begin, slice.numel)))
                << "parameter " << slice.parameter << ", rank " << rank << " of " << degree << ", step " << step;
            part.zero_();
          }
          if (degree > 1) {
            EXPECT_EQ(rest.count_nonzero().item<int64_t>(), 0) << "padding";
          }
        }
      }
}

// Its parameters are gathered as those of others; nothing else is ever allocated, computed or sent.
TEST(FlatParameter, a_frozen_group_has_neither_gradients_nor_optimizer_state) {
  std::vector<ParameterDeclaration> parameters = dense_parameters();
  for (ParameterDeclaration& parameter : parameters) parameter.frozen = true;
  FakeCommunicator shard("shard", 1, 2);
  LocalCommunicator replica("replica");
  FlatParameterOptions options;
  options.optimizer_state = {"exp_avg"};
  FlatParameter group(parameters, 0, 1, shard, replica, options);
  group.allocate_parameters();
  group.allocate_training_state();
  EXPECT_TRUE(group.is_frozen());
  EXPECT_FALSE(group.gradient_shard.defined());
  EXPECT_TRUE(group.optimizer_state.empty());
  ASSERT_EQ(group.gradients().size(), parameters.size());
  for (const Gradient& gradient : group.gradients()) EXPECT_FALSE(gradient.is_wanted());
  group.begin_reduce(true, true);
  EXPECT_FALSE(group.is_reducing());
  group.finish_reduce();
  group.begin_unshard();
  group.finish_unshard();
  EXPECT_EQ(group.weights().size(), parameters.size());
}

// Uniform values, too, are a pure function of (seed, name, element), within their bound.
TEST(FlatParameter, uniform_initial_values_keep_their_bound) {
  std::vector<ParameterDeclaration> parameters = dense_parameters();
  parameters[1].init_bound = 0.25f;
  const at::Tensor drawn = initialized_alone(parameters)[1];
  EXPECT_LT(drawn.abs().max().item<float>(), 0.25f);
  EXPECT_GT(drawn.abs().max().item<float>(), 0.2f);
  EXPECT_NEAR(drawn.mean().item<float>(), 0, 0.05);
  expect_same_on_every_rank(parameters, 1, 3);
}

// Several visits of one backward (tied weights) add to one gradient.
TEST(FlatParameter, second_request_of_gradients_accumulates) {
  FakeCommunicator shard("shard", 1, 2);
  LocalCommunicator replica("replica");
  FlatParameter group(dense_parameters(), 0, 1, shard, replica, {});
  group.allocate_parameters();
  group.allocate_training_state();
  for (const Gradient& gradient : group.gradients()) EXPECT_FALSE(gradient.accumulate);
  for (const Gradient& gradient : group.gradients()) EXPECT_TRUE(gradient.accumulate);
  group.begin_reduce(true, true);
  EXPECT_THROW(group.gradients(), InvariantError);
  group.finish_reduce();
}

}  // namespace
}  // namespace conclave
