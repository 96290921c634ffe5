// Oracle: the meaning of each key, as docs/job_file.md has it, and the learning rate's formula, worked out by hand.
#include "run/same_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "mixtral_shape.h"
#include "unit/checkpoint/thread_world.h"

namespace conclave {
namespace {

using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

ModelConfig small_model() {
  MixtralShape model;
  model.vocab_size = 64;
  model.hidden_size = 32;
  model.intermediate_size = 48;
  model.num_hidden_layers = 2;
  model.num_attention_heads = model.num_key_value_heads = 4;
  model.head_dim = 8;
  model.num_local_experts = 8;
  return model;
}

CheckedJob job_of(const std::function<void(Job&)>& edit = [](Job&) {}) {
  Job job;
  job.data.train.sets = {{"tokens", "tokens", 1}};
  job.data.sequence_length = 16;
  job.schedule.min_lr = 1e-5;
  job.optimizer.lr = 1e-3;
  job.run.steps = 100;
  edit(job);
  return check_job(job, small_model(), 1);
}

CheckpointState saved_by(const CheckedJob& job, int64_t step) {
  const RunIdentity identity = identity_of(job, "fp32", "data");
  CheckpointState state;
  state.step = step;
  state.job = identity.values;
  state.model_config = identity.model_config;
  state.data_fingerprint = "data";
  state.layout[layout_key_micro_step] = job.sequences_per_micro_step();
  return state;
}

std::vector<std::string> said(const CheckedJob& job, const CheckpointState& state, const char* data = "data") {
  return check_same_run(job, identity_of(job, "fp32", data), state, "run/step");
}

std::string refusal(const CheckedJob& job, const CheckpointState& state, const char* data = "data") {
  return message_of<UserError>([&] { said(job, state, data); });
}

TEST(SameRun, nothing_is_said_of_the_same_job) {
  EXPECT_THAT(said(job_of(), saved_by(job_of(), 7)), IsEmpty());
}

// The line that is given back allows everything, also what was allowed before: following it is enough.
TEST(SameRun, all_keys_that_differ_are_allowed_by_one_line) {
  const auto changed = [](const std::string& allowed) {
    return job_of([&](Job& job) {
      job.optimizer.lr = 2e-3;
      job.run.steps = 200;
      job.run.seed = 9;
      if (!allowed.empty()) job.checkpoint.allow_changed = allowed;
    });
  };
  const CheckpointState state = saved_by(job_of(), 7);
  for (const std::string allowed : {"", "optimizer.lr", "run.steps, run.seed", "optimizer.eps"}) {
    const std::string text = refusal(changed(allowed), state, "other data");
    const std::string option = "checkpoint.allow_changed=";
    ASSERT_THAT(text, HasSubstr(option));
    const std::string line = text.substr(text.find(option) + option.size());
    EXPECT_NO_THROW(said(changed(line), state, "other data")) << line;
    EXPECT_THAT(line, HasSubstr(allowed.substr(0, allowed.find(','))));
  }
}

// A cosine from 1e-3 to 1e-5 is at its lowest at its end; one of 202 steps is at its middle, 5.05e-4, in step 101.
TEST(SameRun, a_longer_cosine_says_how_the_learning_rate_jumps) {
  const auto longer = [](const char* allowed) {
    return job_of([&](Job& job) {
      job.run.steps = 202;
      if (allowed != nullptr) job.checkpoint.allow_changed = allowed;
    });
  };
  const CheckpointState finished = saved_by(job_of(), 100);
  const std::string jump = "the learning rate jumps from 1e-05 (step 100) to 0.000505 (step 101)";
  EXPECT_THAT(said(longer("run.steps"), finished), Contains(HasSubstr(jump)));
  EXPECT_THAT(refusal(longer(nullptr), finished), HasSubstr(jump));
  // Within the warm-up of both nothing jumps.
  const auto warming = [](int64_t steps) {
    return job_of([&](Job& job) {
      job.run.steps = steps;
      job.schedule.warmup_steps = 1000;
      job.checkpoint.allow_changed = "run.steps";
    });
  };
  EXPECT_THAT(said(warming(3000), saved_by(warming(2000), 500)), Not(Contains(HasSubstr("jumps"))));
  // A new learning rate is a jump too.
  const CheckedJob other_lr = job_of([](Job& job) {
    job.schedule.kind = ScheduleKind::constant;
    job.optimizer.lr = 3e-3;
    job.checkpoint.allow_changed = "optimizer.lr";
  });
  const CheckedJob constant = job_of([](Job& job) { job.schedule.kind = ScheduleKind::constant; });
  EXPECT_THAT(said(other_lr, saved_by(constant, 5)),
              Contains(HasSubstr("jumps from 0.001 (step 5) to 0.003 (step 6)")));
}

// Keys that an older program did not write, or wrote otherwise, are no difference.
TEST(SameRun, a_model_config_of_an_older_program_is_read_as_it_was_meant) {
  CheckpointState state = saved_by(job_of(), 7);
  nlohmann::json config = nlohmann::json::parse(state.model_config);
  config.erase("router_jitter_noise");
  config.erase("sliding_window");
  config.erase("rope_parameters");
  state.model_config = config.dump();
  EXPECT_THAT(said(job_of(), state), IsEmpty());
  config["rms_norm_eps"] = 1e-2;
  state.model_config = config.dump();
  EXPECT_THAT(refusal(job_of(), state), HasSubstr("model.config: rms_norm_eps is 1e-05, was 0.01"));
}

TEST(SameRun, what_spans_a_micro_step_is_said_to_change_with_it) {
  const auto micro_batch = [](int64_t size, const std::function<void(Job&)>& edit) {
    return job_of([&](Job& job) {
      job.data.micro_batch_size = size;
      job.data.global_batch_size = 8;
      edit(job);
    });
  };
  const auto of = [&](const std::function<void(Job&)>& edit) {
    return said(micro_batch(2, edit), saved_by(micro_batch(4, edit), 3));
  };
  EXPECT_THAT(of([](Job& job) { job.moe.moe_aux_loss_coeff = 0.1; }), Contains(HasSubstr("the balancing loss")));
  EXPECT_THAT(of([](Job& job) { job.moe.capacity_factor = 1.5; }), Contains(HasSubstr("capacity")));
  EXPECT_THAT(of([](Job& job) { job.moe.moe_load_balancing = LoadBalancing::none; }), IsEmpty());
}

}  // namespace
}  // namespace conclave
