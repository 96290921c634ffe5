// Which changes of a job stop a resumed run. Oracle: the meaning of each key, as docs/job_file.md has it.
#include "config/job_difference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<std::string> keys_of(const std::vector<Difference>& differences) {
  std::vector<std::string> keys;
  for (const Difference& difference : differences) keys.push_back(difference.key);
  return keys;
}

std::vector<std::string> keys_that_matter(const Job& is, const Job& was) {
  return keys_of(differences_that_matter(values_of(is), values_of(was)));
}

TEST(JobDifference, equal_jobs_have_none) {
  EXPECT_THAT(keys_that_matter(Job(), Job()), IsEmpty());
}

TEST(JobDifference, what_changes_a_result_matters) {
  Job is;
  is.run.seed = 5;
  is.data.sequence_length = 7;
  is.moe.moe_z_loss_coeff = 0.5;
  is.moe.capacity_factor = 1.25;
  is.moe.drop_policy = DropPolicy::position;
  is.precision.reduce = Precision::bf16;
  is.precision.experts = ExpertPrecision::fp8;
  is.precision.router = RouterPrecision::compute;
  is.optimizer.beta1 = 0.5;
  is.schedule.warmup_steps = 3;
  EXPECT_THAT(keys_that_matter(is, Job()),
              ElementsAre("data.sequence_length", "moe.capacity_factor", "moe.drop_policy", "moe.moe_z_loss_coeff",
                          "optimizer.beta1", "precision.experts", "precision.reduce", "precision.router", "run.seed",
                          "schedule.warmup_steps"));
  const auto difference = differences_that_matter(values_of(is), values_of(Job())).at(0);
  EXPECT_EQ(difference.is, "7");
  EXPECT_EQ(difference.was, "2048");
}

TEST(JobDifference, places_differ_between_hosts_but_not_what_a_blend_is_of) {
  Job job, elsewhere;
  job.data.train.sets = {{"a", "here/a", 1}};
  elsewhere.data.train.sets = {{"b", "there/b", 1}};
  EXPECT_EQ(values_but_places_of(job), values_but_places_of(elsewhere));
  job.data.train.sets = {{"a", "here/a", 0.7}, {"b", "here/b", 2}};
  elsewhere.data.train.sets = {{"a", "there/c", 0.7}, {"b", "there/d", 2}};
  EXPECT_EQ(values_but_places_of(job).at("data.train"), "a with weight 0.7, b with weight 2.0");
  EXPECT_EQ(values_but_places_of(job), values_but_places_of(elsewhere));
  elsewhere.data.train.sets[1].weight = 3;
  EXPECT_NE(values_but_places_of(job), values_but_places_of(elsewhere));
  elsewhere.data.train.sets[1] = {"c", "there/d", 2};
  EXPECT_NE(values_but_places_of(job), values_but_places_of(elsewhere));
  elsewhere = job;
  elsewhere.data.validation = ValidationData{{{"a", "a", 1}, {"b", "b", 1}}};
  EXPECT_NE(values_but_places_of(job), values_but_places_of(elsewhere));
}

TEST(JobDifference, what_changes_none_does_not) {
  Job is;
  is.run.name = "other";
  is.run.output_dir = "there";
  is.model.config = "there";
  is.model.init_from = "there";
  is.data.train.sets = {{"there", "there", 1}};
  is.data.validation = ValidationData{{{"there", "there", 1}}};
  is.parallel.expert_parallel_degree = 4;
  is.parallel.hybrid_shard_degree = 2;
  is.parallel.elastic = true;
  is.parallel.prefetch_units = 3;
  is.parallel.reshard_after_forward = ReshardRule(false);
  is.memory = {ActivationCheckpointing::full, true, 5, "there", 6};
  is.moe.dispatcher = DispatcherKind::all_gather;
  is.moe.dispatch_chunks = 2;
  is.moe.global_token_shuffle = true;
  is.moe.overload = OverloadPolicy::spill;
  is.moe.max_tokens_per_rank_factor = 2;
  is.moe.spill_threshold = 2;
  is.moe.spill_least_rows = 1;
  is.optimizer.max_skipped_steps = 1;
  is.checkpoint.every = 7;
  is.checkpoint.every_minutes = 7;
  is.run.stop_after = Duration{60};
  is.validation.every = 3;
  is.metrics.tensorboard = false;
  EXPECT_THAT(keys_that_matter(is, Job()), IsEmpty());
}

TEST(JobDifference, more_steps_matter_while_the_learning_rate_falls) {
  Job is, was;
  is.run.steps = 2000;
  EXPECT_THAT(keys_that_matter(is, was), ElementsAre("run.steps"));
  is.schedule.kind = was.schedule.kind = ScheduleKind::constant;
  EXPECT_THAT(keys_that_matter(is, was), IsEmpty());
  was.schedule.kind = ScheduleKind::linear;
  EXPECT_THAT(keys_that_matter(is, was), ElementsAre("run.steps", "schedule.kind"));
}

TEST(JobDifference, a_key_that_the_older_job_lacks_had_its_default) {
  KeyValues was = values_of(Job());
  was.erase("optimizer.grad_clip");
  Job is;
  EXPECT_THAT(differences_that_matter(values_of(is), was), IsEmpty());
  is.optimizer.grad_clip = 2.0;
  EXPECT_THAT(keys_of(differences_that_matter(values_of(is), was)), ElementsAre("optimizer.grad_clip"));
}

TEST(JobDifference, the_model_is_compared_key_by_key) {
  const KeyValues was = values_of_model(R"({"hidden_size": 32, "num_experts_per_tok": 2, "initializer_range": 0.1})");
  const KeyValues is = values_of_model(R"({"hidden_size": 64, "num_experts_per_tok": 2, "initializer_range": 0.2})");
  const std::vector<Difference> differences = differences_that_matter(is, was);
  EXPECT_THAT(keys_of(differences), ElementsAre("model.config: hidden_size"));
  EXPECT_EQ(differences[0].is, "64");
  EXPECT_EQ(differences[0].was, "32");
}

TEST(JobDifference, allowed_keys_are_a_list) {
  Job job;
  EXPECT_THAT(keys_allowed_to_change(job), IsEmpty());
  job.checkpoint.allow_changed = "optimizer.lr,  run.steps,";
  EXPECT_THAT(keys_allowed_to_change(job), ElementsAre("optimizer.lr", "run.steps"));
  EXPECT_EQ(mistake_in_allowed_keys(job), "");
  job.checkpoint.allow_changed = "optimizer.ln";
  EXPECT_THAT(mistake_in_allowed_keys(job), testing::HasSubstr("Did you mean optimizer.lr?"));
}

}  // namespace
}  // namespace conclave
