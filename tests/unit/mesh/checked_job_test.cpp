// What follows from a job and its hosts. Oracle: the rules as docs/dispatch.md has them.
#include "mesh/checked_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace conclave {
namespace {

CheckedJob job_with(const MoeConfig& moe, int64_t expert_degree) {
  Job job;
  job.moe = moe;
  job.parallel.expert_parallel_degree = expert_degree;
  return check_job(job, ModelConfig(), 16);
}

TEST(DispatchChunks, are_two_where_an_expert_group_spans_hosts) {
  EXPECT_EQ(dispatch_chunks(job_with({}, 8), 16), 1);
  EXPECT_EQ(dispatch_chunks(job_with({}, 8), 8), 1);
  EXPECT_EQ(dispatch_chunks(job_with({}, 8), 4), 2);
  EXPECT_EQ(dispatch_chunks(job_with({}, 4), 6), 2) << "the second group lies on two hosts";
  EXPECT_EQ(dispatch_chunks(job_with({}, 1), 1), 1) << "nothing travels";
  EXPECT_EQ(dispatch_chunks(job_with({.overload = OverloadPolicy::spill}, 8), 4), 1);
}

TEST(DispatchChunks, are_what_the_job_says) {
  for (const int64_t chunks : {1, 5}) EXPECT_EQ(dispatch_chunks(job_with({.dispatch_chunks = chunks}, 8), 4), chunks);
}

TEST(Fp8Experts, want_whole_blocks_in_both_dims_of_the_model) {
  Job job;
  job.precision.experts = ExpertPrecision::fp8;
  ModelConfig model;
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
