// What follows from a job and its hosts. Oracle: the rules as docs/dispatch.md has them.
#include "mesh/checked_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "mixtral_shape.h"

namespace conclave {
namespace {

CheckedJob job_with(const MoeConfig& moe, int64_t expert_degree) {
  Job job;
  job.moe = moe;
  job.parallel.expert_parallel_degree = expert_degree;
  return check_job(job, MixtralShape(), 16);
}

MoeConfig chosen(const MoeConfig& moe, int64_t expert_degree, int64_t ranks_per_host) {
  CheckedJob job = job_with(moe, expert_degree);
  choose_dispatch(job, spans_hosts(job, ranks_per_host));
  return job.job.moe;
}

TEST(DispatchChunks, are_two_where_an_expert_group_spans_hosts) {
  EXPECT_EQ(chosen({}, 8, 16).dispatch_chunks, 1);
  EXPECT_EQ(chosen({}, 8, 8).dispatch_chunks, 1);
  EXPECT_EQ(chosen({}, 8, 4).dispatch_chunks, 2);
  EXPECT_EQ(chosen({}, 4, 6).dispatch_chunks, 2) << "the second group lies on two hosts";
  EXPECT_EQ(chosen({}, 1, 1).dispatch_chunks, 1) << "nothing travels";
  EXPECT_EQ(chosen({.overload = OverloadPolicy::spill}, 8, 4).dispatch_chunks, 1);
}

// 1, 2, 1 ranks a host and the like: one answer for all, and not each rank's own host's.
TEST(SpansHosts, is_the_same_for_all_ranks_of_uneven_hosts) {
  const auto hosts = [](int first, int second) {  // of 16 ranks, the first so many, then so many, then the rest
    std::vector<int> host_of_rank(16, 2);
    for (int rank = 0; rank < first + second; ++rank) host_of_rank[rank] = rank < first ? 0 : 1;
    return host_of_rank;
  };
  EXPECT_TRUE(spans_hosts(job_with({}, 2), hosts(1, 2)));
  EXPECT_FALSE(spans_hosts(job_with({}, 2), hosts(2, 4)));
  EXPECT_TRUE(spans_hosts(job_with({}, 4), hosts(8, 6))) << "the last group alone lies on two hosts";
  EXPECT_FALSE(spans_hosts(job_with({}, 8), std::vector<int>(16, 0)));
  std::vector<int> cyclic;  // srun --distribution=cyclic
  for (int rank = 0; rank < 16; ++rank) cyclic.push_back(rank % 2);
  EXPECT_TRUE(spans_hosts(job_with({}, 2), cyclic)) << "although each host's 8 ranks would hold whole groups";
  EXPECT_FALSE(spans_hosts(job_with({}, 1), cyclic));
}

TEST(DispatchChunks, are_what_the_job_says) {
  for (const int64_t chunks : {1, 5}) EXPECT_EQ(chosen({.dispatch_chunks = chunks}, 8, 4).dispatch_chunks, chunks);
}

TEST(Overload, spills_within_a_host_unless_the_job_cannot) {
  EXPECT_EQ(chosen({}, 8, 8).overload, OverloadPolicy::spill);
  EXPECT_EQ(chosen({}, 8, 4).overload, OverloadPolicy::none) << "weights would cross a network";
  EXPECT_EQ(chosen({}, 1, 1).overload, OverloadPolicy::none) << "nothing travels";
  EXPECT_EQ(chosen({.dispatcher = DispatcherKind::all_gather}, 8, 8).overload, OverloadPolicy::none);
  EXPECT_EQ(chosen({.dispatch_chunks = 2}, 8, 8).overload, OverloadPolicy::none);
  EXPECT_EQ(chosen({.dispatch_chunks = 1}, 8, 8).overload, OverloadPolicy::spill);
}

TEST(Overload, is_what_the_job_says) {
  for (const OverloadPolicy policy : {OverloadPolicy::none, OverloadPolicy::chunk, OverloadPolicy::spill})
    for (const int64_t ranks_per_host : {4, 8})
      EXPECT_EQ(chosen({.overload = policy}, 8, ranks_per_host).overload, policy);
  EXPECT_EQ(chosen({.spill_least_rows = 64}, 8, 4).overload, OverloadPolicy::spill) << "a key of spill asks for it";
  EXPECT_EQ(chosen({.spill_threshold = 1.1}, 8, 4).overload, OverloadPolicy::spill);
}

TEST(Overload, is_explained_when_the_default_lends_nothing) {
  const auto why = [](const MoeConfig& moe, int64_t expert_degree, bool spans_hosts) {
    CheckedJob job = job_with(moe, expert_degree);
    return choose_dispatch(job, spans_hosts);
  };
  EXPECT_EQ(why({}, 8, false), "");
  EXPECT_EQ(why({}, 1, false), "");
  EXPECT_EQ(why({}, 8, true), "an expert group spans hosts");
  EXPECT_EQ(why({.dispatcher = DispatcherKind::all_gather}, 8, false), "moe.dispatcher is all_gather");
  EXPECT_EQ(why({.dispatch_chunks = 3}, 8, false), "moe.dispatch_chunks is 3");
  EXPECT_EQ(why({.overload = OverloadPolicy::none}, 8, true), "") << "which was asked for";
}

TEST(AuxLossLayers, are_those_that_a_published_model_was_trained_with) {
  const auto layers = [](const ModelSource& source, const MoeConfig& moe) {
    Job job;
    job.model = source;
    job.moe = moe;
    return check_job(job, MixtralShape(), 1).job.moe.aux_loss_layers;
  };
  ModelSource published, dense;
  published.init_from = "mixtral";
  dense.upcycle_from = "mistral";
  EXPECT_EQ(layers(ModelSource(), {}), AuxLossLayers::each);
  EXPECT_EQ(layers(published, {}), AuxLossLayers::together);
  EXPECT_EQ(layers(dense, {}), AuxLossLayers::each) << "a dense model has no such loss";
  EXPECT_EQ(layers(published, {.aux_loss_layers = AuxLossLayers::each}), AuxLossLayers::each);
  EXPECT_EQ(layers(ModelSource(), {.aux_loss_layers = AuxLossLayers::together}), AuxLossLayers::together);
  EXPECT_EQ(layers(ModelSource(), {.moe_load_balancing = LoadBalancing::bias}), std::nullopt)
      << "there is no such loss";
}

TEST(Fp8Experts, want_whole_blocks_in_both_dims_of_the_model) {
  Job job;
  job.precision.experts = ExpertPrecision::fp8;
  MixtralShape model;
  EXPECT_NO_THROW(check_job(job, model, 1));
  model.intermediate_size = 14336 + 64;
  EXPECT_THAT([&] { check_job(job, model, 1); },
              testing::ThrowsMessage<UserError>(testing::HasSubstr("intermediate_size is 14400")));
  model = {};
  model.hidden_size = 4096 - 32;
  EXPECT_THROW(check_job(job, model, 1), UserError);
  job.precision.experts = ExpertPrecision::compute;
  EXPECT_NO_THROW(check_job(job, model, 1));
}

}  // namespace
}  // namespace conclave
