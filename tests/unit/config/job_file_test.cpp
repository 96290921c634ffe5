#include "config/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <set>
#include <sstream>

#include "config/fields.h"
#include "refused.h"

namespace conclave {
namespace {

using testing::HasSubstr;

// Every key that has more than one value, at a value that is not its default.
constexpr const char* every_key = R"(
run: {name: "first: \"try\" # 1", output_dir: runs/a, steps: 7, seed: 9223372036854775807, device: cuda, deterministic: true, timeout_seconds: 12, stop_after: 3h30m}
model: {config: models/small, init_from: weights}
data:
  train: tokens/train
  validation: tokens/held back
  sequence_length: 33
  micro_batch_size: 3
  global_batch_size: 12
parallel: {expert_parallel_degree: 2, hybrid_shard_degree: 4, elastic: true, prefetch_units: 0, reshard_after_forward: false}
memory:
  activation_checkpointing: selective
  activation_offloading: true
  activation_loading_horizon: 5
  offload_folder: scratch
  loss_chunk_tokens: 77
moe:
  moe_load_balancing: sinkhorn
  moe_aux_loss_coeff: 0
  moe_z_loss_coeff: 1e-3
  sinkhorn_tolerance: 0.5
  sinkhorn_iterations: 7
  dispatcher: all_gather
  dispatch_chunks: 3
  global_token_shuffle: true
  capacity_factor: 1.25
  drop_policy: position
  router_jitter_noise: .01
precision: {compute: bf16, reduce: bf16, experts: fp8, router: compute}
optimizer: {lr: 3e-4, beta1: 0.8, beta2: 0.9, eps: 1e-6, weight_decay: 0.05, grad_clip: 2, max_skipped_steps: 9}
schedule: {kind: linear, warmup_steps: 4, min_lr: 2e-5}
checkpoint: {every: 6, every_minutes: 7.5, keep: 8, keep_every: 24, async: false, resume: never, verify: false, on_damage: stop, allow_changed: "optimizer.lr, run.steps",
  export_every: 11, export_keep: 12}
validation: {every: 13, samples: 14}
metrics: {tensorboard: false, log_every: 15, record_routing: true}
)";

struct Described {
  std::set<std::string> keys;
  std::set<std::string> only;  // keys with one value in this version
};

Described described_keys() {
  Job job;
  const Fields fields = fields_of(job);
  Described described;
  for (const Field* field : fields.all()) {
    EXPECT_TRUE(described.keys.insert(field->key()).second) << field->key() << " is described twice";
    EXPECT_GT(std::string(field->help()).size(), 0u) << field->key();
    if (field->only() != nullptr) described.only.insert(field->key());
  }
  return described;
}

// Of the sections in their order. That each key is bound to its own member, every_key_reaches_its_member shows.
struct MemberCount {
  const Fields& fields;
  size_t section = 0;

  template <class... Members>
  void expect_described(const Members&... all) {
    const Fields::Section& described = fields.sections().at(section++);
    EXPECT_EQ(described.fields.size(), sizeof...(all)) << described.name;
  }
};

// Oracle: the language. A structured binding does not compile unless it names every member of the struct.
TEST(JobDescription, has_every_member_of_every_struct) {
  Job job;
  const Fields fields = fields_of(job);
  MemberCount count{fields};
  {
    const auto& [a, b, c, d, e, f, g, h] = job.run;
    count.expect_described(a, b, c, d, e, f, g, h);
  }
  {
    const auto& [a, b, c, d, e, f, g] = job.model;
    count.expect_described(a, b, c, d, e, f, g);
  }
  {
    const auto& [a] = job.train;
    count.expect_described(a);
  }
  {
    const auto& [a, b, c, d, e, f, g, h, i] = job.adapter;
    count.expect_described(a, b, c, d, e, f, g, h, i);
  }
  {
    const auto& [a, b, c, d, e, f] = job.data;
    count.expect_described(a, b, c, d, e, f);
  }
  {
    const auto& [a, b, c, d, e] = job.parallel;
    count.expect_described(a, b, c, d, e);
  }
  {
    const auto& [a, b, c, d, e] = job.memory;
    count.expect_described(a, b, c, d, e);
  }
  {
    const auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r] = job.moe;
    count.expect_described(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r);
  }
  {
    const auto& [a, b, c, d] = job.precision;
    count.expect_described(a, b, c, d);
  }
  {
    const auto& [a, b, c, d, e, f, g] = job.optimizer;
    count.expect_described(a, b, c, d, e, f, g);
  }
  {
    const auto& [a, b, c] = job.schedule;
    count.expect_described(a, b, c);
  }
  {
    const auto& [a, b, c, d, e, f, g, h, i, j, k] = job.checkpoint;
    count.expect_described(a, b, c, d, e, f, g, h, i, j, k);
  }
  {
    const auto& [a, b, c, d, e, f] = job.validation;
    count.expect_described(a, b, c, d, e, f);
  }
  {
    const auto& [a, b, c] = job.metrics;
    count.expect_described(a, b, c);
  }
  // No section is forgotten either.
  [[maybe_unused]] const auto& [run, model, train, adapter, data, parallel, memory, moe, precision, optimizer, schedule,
                                checkpoint, validation, metrics, origins] = job;
  EXPECT_EQ(fields.sections().size(), count.section);
}

// Oracle: the members, spelled out.
TEST(JobFile, every_key_reaches_its_member) {
  const TemporaryFile file("job.yaml", every_key);
  const Job job = read_job(file.path());
  EXPECT_EQ(job.run.name, "first: \"try\" # 1");
  EXPECT_EQ(job.run.output_dir, "runs/a");
  EXPECT_EQ(job.run.steps, 7);
  EXPECT_EQ(job.run.seed, std::numeric_limits<int64_t>::max());
  EXPECT_EQ(job.run.device, WantedDevice::cuda);
  EXPECT_EQ(job.run.timeout_seconds, 12);
  EXPECT_EQ(job.run.stop_after, Duration{3 * 3600 + 30 * 60});
  EXPECT_EQ(job.model.config, "models/small");
  EXPECT_EQ(job.model.init_from, "weights");
  EXPECT_EQ(prefixes_of(job.data.train.sets), "tokens/train");
  EXPECT_EQ(prefixes_of(job.data.validation->sets), "tokens/held back");
  EXPECT_EQ(job.data.sequence_length, 33);
  EXPECT_EQ(job.data.micro_batch_size, 3);
  EXPECT_EQ(job.data.global_batch_size, 12);
  EXPECT_EQ(job.parallel.expert_parallel_degree, 2);
  EXPECT_EQ(job.parallel.hybrid_shard_degree, 4);
  EXPECT_TRUE(job.parallel.elastic);
  EXPECT_EQ(job.parallel.prefetch_units, 0);
  EXPECT_EQ(job.parallel.reshard_after_forward.text(), "false");
  EXPECT_EQ(job.memory.activation_checkpointing, ActivationCheckpointing::selective);
  EXPECT_TRUE(job.memory.activation_offloading);
  EXPECT_EQ(job.memory.activation_loading_horizon, 5);
  EXPECT_EQ(job.memory.offload_folder, "scratch");
  EXPECT_EQ(job.memory.loss_chunk_tokens, 77);
  EXPECT_EQ(job.moe.moe_load_balancing, LoadBalancing::sinkhorn);
  EXPECT_EQ(job.moe.moe_aux_loss_coeff, 0.0);
  EXPECT_EQ(job.moe.moe_z_loss_coeff, 1e-3);
  EXPECT_EQ(job.moe.dispatcher, DispatcherKind::all_gather);
  EXPECT_EQ(job.moe.dispatch_chunks, 3);
  EXPECT_TRUE(job.moe.global_token_shuffle);
  EXPECT_EQ(job.moe.capacity_factor, 1.25);
  EXPECT_EQ(job.moe.drop_policy, DropPolicy::position);
  EXPECT_EQ(job.moe.router_jitter_noise, 0.01);
  EXPECT_EQ(job.precision.compute, Precision::bf16);
  EXPECT_EQ(job.precision.reduce, Precision::bf16);
  EXPECT_EQ(job.precision.experts, ExpertPrecision::fp8);
  EXPECT_EQ(job.precision.router, RouterPrecision::compute);
  EXPECT_EQ(job.optimizer.lr, 3e-4);
  EXPECT_EQ(job.optimizer.beta1, 0.8);
  EXPECT_EQ(job.optimizer.beta2, 0.9);
  EXPECT_EQ(job.optimizer.eps, 1e-6);
  EXPECT_EQ(job.optimizer.weight_decay, 0.05);
  EXPECT_EQ(job.optimizer.grad_clip, 2.0);
  EXPECT_EQ(job.optimizer.max_skipped_steps, 9);
  EXPECT_EQ(job.schedule.kind, ScheduleKind::linear);
  EXPECT_EQ(job.schedule.warmup_steps, 4);
  EXPECT_EQ(job.schedule.min_lr, 2e-5);
  EXPECT_EQ(job.checkpoint.every, 6);
  EXPECT_EQ(job.checkpoint.every_minutes, 7.5);
  EXPECT_EQ(job.checkpoint.keep, 8);
  EXPECT_EQ(job.checkpoint.keep_every, 24);
  EXPECT_FALSE(job.checkpoint.async);
  EXPECT_EQ(job.checkpoint.resume, "never");
  EXPECT_FALSE(job.checkpoint.verify);
  EXPECT_EQ(job.checkpoint.on_damage, OnDamage::stop);
  EXPECT_EQ(job.checkpoint.allow_changed, "optimizer.lr, run.steps");
  EXPECT_EQ(job.validation.every, 13);
  EXPECT_EQ(job.validation.samples, 14);
  EXPECT_FALSE(job.metrics.tensorboard);
  EXPECT_EQ(job.metrics.log_every, 15);
  EXPECT_TRUE(job.metrics.record_routing);
  EXPECT_EQ(job.origins.of("run.steps"), file.path().string() + ", line 2");
  EXPECT_EQ(job.origins.of("moe.moe_z_loss_coeff"), file.path().string() + ", line 20");
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// The file above leaves no key at its default, so a key that is not printed or not read back is seen. Keys that do
// not go with others of its own are looked at one by one.
TEST(JobFile, every_key_is_printed_and_reads_back) {
  const TemporaryFile file("job.yaml", every_key);
  const std::string printed = print_job(read_job(file.path()));
  const TemporaryFile resolved("job.yaml", printed);
  EXPECT_EQ(print_job(read_job(resolved.path())), printed);

  const std::vector<std::string> lines = lines_of(printed), defaults = lines_of(print_job(Job()));
  ASSERT_EQ(lines.size(), defaults.size());
  size_t changed = 0;
  for (size_t i = 0; i < lines.size(); ++i) changed += lines[i] != defaults[i];
  const Described described = described_keys();
  const std::vector<std::vector<std::string>> of_another_job = {
      {"moe.aux_loss_scope=rank"},
      {"moe.aux_loss_layers=each"},
      {"moe.bias_update_rate=0.5", "moe.moe_load_balancing=bias"},
      {"moe.overload=spill"},
      {"moe.max_tokens_per_rank_factor=2.5", "moe.overload=chunk"},
      {"moe.spill_threshold=2.5", "moe.overload=spill"},
      {"moe.spill_least_rows=5", "moe.overload=spill"},
      {"model.resize_vocabulary=512", "model.init_from=weights"},
      {"model.shrink_vocabulary=true", "model.resize_vocabulary=512", "model.init_from=weights"},
      {"model.upcycle_from=dense"},
      {"model.upcycle_noise=0.5", "model.upcycle_from=dense"},
      {"model.upcycle_reinit_fraction=0.5", "model.upcycle_from=dense"},
      {"train.freeze=[\"a.*\"]"},
      {"adapter.rank=3"},
      {"adapter.alpha=4.5", "adapter.rank=3"},
      {"adapter.dropout=0.25", "adapter.rank=3"},
      {"adapter.targets=[\"mlp\"]", "adapter.rank=3"},
      {"adapter.experts=false", "adapter.rank=3"},
      {"adapter.router=adapted", "adapter.rank=3"},
      {"adapter.use_rslora=true", "adapter.rank=3"},
      {"adapter.init_from=folder", "adapter.rank=3"},
      {"data.document_mask=true"},
      {"validation.prompts=[\"a\"]", "validation.every=2", "data.validation=v", "validation.tokenizer=t"},
      {"validation.prompt_tokens=3"},
      {"validation.temperature=0.5"},
      {"validation.tokenizer=folder"}};
  EXPECT_EQ(changed, described.keys.size() - described.only.size() - of_another_job.size());
  for (const std::vector<std::string>& overrides : of_another_job) {
    const std::string with = print_job(job_from_overrides(overrides));
    EXPECT_NE(with, print_job(Job())) << overrides[0];
    const size_t point = overrides[0].find('.'), equals = overrides[0].find('=');
    const std::string key = overrides[0].substr(point + 1, equals - point - 1), value = overrides[0].substr(equals + 1);
    EXPECT_THAT(
        with, testing::AnyOf(testing::HasSubstr(key + ": " + value), testing::HasSubstr(key + ": \"" + value + "\"")));
  }
  EXPECT_THAT(described.only, testing::UnorderedElementsAre("run.deterministic", "adapter.use_dora"));
}

TEST(JobFile, json_is_yaml) {
  const TemporaryFile file("job.json", R"({
  "run": {"output_dir": "runs/a", "steps": 5, "name": "json"},
  "model": {"config": "m", "init_from": null},
  "optimizer": {"lr": 1E-3}, "metrics": {"tensorboard": false}
})");
  const Job job = read_job(file.path());
  EXPECT_EQ(job.run.steps, 5);
  EXPECT_EQ(job.run.name, "json");
  EXPECT_EQ(job.model.init_from, std::nullopt);
  EXPECT_EQ(job.optimizer.lr, 1e-3);
  EXPECT_FALSE(job.metrics.tensorboard);
}

TEST(JobFile, what_is_not_given_has_its_default) {
  const TemporaryFile file("job.yaml", "run: {output_dir: a}\nmodel: {config: b}\nmoe:\n");
  EXPECT_EQ(print_job(read_job(file.path())), print_job(job_from_overrides({"run.output_dir=a", "model.config=b"})));
  EXPECT_EQ(print_job(job_from_overrides({})), print_job(Job()));
}

TEST(JobFile, overrides_win_and_the_last_one_counts) {
  const TemporaryFile file("job.yaml", "run: {output_dir: a, steps: 5}\nmodel: {config: b}\n");
  const Job job = read_job(file.path(), {"run.steps=6", "run.steps=7", "run.name=a=b.c", "data.train='x y'"});
  EXPECT_EQ(job.run.steps, 7);
  EXPECT_EQ(job.run.name, "a=b.c");
  EXPECT_EQ(prefixes_of(job.data.train.sets), "x y");
  EXPECT_EQ(job.origins.of("run.steps"), "--set run.steps=7");
  EXPECT_EQ(job.origins.of("run.seed"), "");
}

// Oracle: the bits of the number that was printed. Draws all exponents of doubles, not only those near 1.
TEST(JobFile, numbers_read_back_to_the_last_bit) {
  const uint64_t seed = 20240607;
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> exponent(-300, 300), mantissa(1, 10);
  for (int i = 0; i < 300; ++i) {
    Job job;
    job.optimizer.lr = mantissa(random) * std::pow(10.0, exponent(random));
    job.schedule.min_lr = 0;
    job.run.output_dir = "a";
    job.model.config = "b";
    const TemporaryFile file("job.yaml", print_job(job));
    ASSERT_EQ(read_job(file.path()).optimizer.lr, job.optimizer.lr);
  }
}

TEST(JobFile, text_reads_back_whatever_it_holds) {
  for (const std::string text :
       {"null", "12", "true", "~", " a ", "a\nb\tc", "\"quoted\" 'so'", "back\\slash", "# no comment", "Grüße 漢字",
        "{a: b}", "&a *b !c", "$HOME", "a$$b", "${x}", "~root/a"}) {
    Job job;
    job.run.name = text;
    job.run.output_dir = text;
    job.model.config = "b";
    job.data.validation = ValidationData{{{"", text, 1}}};
    const TemporaryFile file("job.yaml", print_job(job));
    const Job again = read_job(file.path());
    EXPECT_EQ(again.run.name, text);
    // A tilde at the beginning is written with ./ before it.
    EXPECT_EQ(again.run.output_dir.lexically_normal(), text);
    EXPECT_EQ(again.data.validation->sets.at(0).prefix.lexically_normal(), text);
  }
}

// Other readers take 1e-05 for text (YAML 1.1): a number is printed with a point.
TEST(JobFile, numbers_are_numbers_for_every_yaml_reader) {
  EXPECT_THAT(print_job(Job()), HasSubstr("min_lr: 1.0e-05 "));
  EXPECT_THAT(print_job(Job()), HasSubstr("grad_clip: 1.0 "));
}

TEST(JobFile, help_tells_every_key_with_type_default_and_meaning) {
  const std::string help = job_help();
  const Described described = described_keys();
  for (const std::string& key : described.keys)
    EXPECT_THAT(help, HasSubstr("\n  " + key.substr(key.find('.') + 1) + " ")) << key;
  EXPECT_THAT(help, HasSubstr("steps                       a whole number, at least 1; default 1000\n"
                              "                              optimizer steps of the whole job\n"));
  EXPECT_THAT(help, HasSubstr("device                      auto, cpu or cuda; default auto\n"));
  EXPECT_THAT(help, HasSubstr("beta1                       a number, at least 0 and less than 1; default 0.9\n"));
  EXPECT_THAT(help, HasSubstr("config                      a path; required by every job\n"));
  EXPECT_THAT(help, HasSubstr("drop_policy                 probability or position, or null; default null\n"));
}

// Oracle: the dictionary of the public SMP v2 example's launcher, and MoEConfig's defaults where this version has them.
TEST(JobFile, takes_smp_names_as_they_are) {
  const TemporaryFile file("job.json", R"({
  "run": {"output_dir": "a"}, "model": {"config": "b"}, "memory": {"activation_checkpointing": "full"},
  "parallel": {"expert_parallel_degree": 2, "hybrid_shard_degree": 32, "sm_activation_offloading": true,
               "activation_loading_horizon": 3, "tensor_parallel_degree": 1, "context_parallel_degree": 1, "random_seed": 12345},
  "moe": {"smp_moe": true, "random_seed": 12345, "moe_load_balancing": "aux_loss", "global_token_shuffle": false,
          "moe_all_to_all_dispatcher": true, "moe_aux_loss_coeff": 0.001, "moe_z_loss_coeff": 0.001}
})");
  const Job job = read_job(file.path());
  EXPECT_EQ(job.parallel.expert_parallel_degree, 2);
  EXPECT_EQ(job.parallel.hybrid_shard_degree, 32);
  EXPECT_TRUE(job.memory.activation_offloading);
  EXPECT_EQ(job.memory.activation_loading_horizon, 3);
  EXPECT_EQ(job.run.seed, 12345);
  EXPECT_EQ(job.moe.moe_load_balancing, LoadBalancing::aux_loss);
  EXPECT_EQ(job.moe.moe_aux_loss_coeff, 0.001);
  EXPECT_EQ(job.moe.moe_z_loss_coeff, 0.001);
  EXPECT_EQ(job_from_overrides({"memory.sm_activation_offloading=true", "memory.activation_checkpointing=full"})
                .memory.activation_offloading,
            true);
}

// An override replaces what the file says of a key under any of its names.
TEST(JobFile, overrides_win_over_smp_names_too) {
  const TemporaryFile file("job.yaml", "run: {output_dir: a}\nmodel: {config: b}\nmoe: {random_seed: 5}\n");
  EXPECT_EQ(read_job(file.path()).run.seed, 5);
  EXPECT_EQ(read_job(file.path(), {"run.seed=6"}).run.seed, 6);
  EXPECT_EQ(read_job(file.path(), {"parallel.random_seed=7"}).run.seed, 7);
}

}  // namespace
}  // namespace conclave
