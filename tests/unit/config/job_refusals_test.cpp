// Each mistake a user can make in a job, by its message. Oracle: the sentence we want people to read, written here by
// hand.
#include <gtest/gtest.h>

#include "config/job_check.h"
#include "config/job_file.h"
#include "refused.h"

namespace conclave {
namespace {

const std::string head = "run: {output_dir: out}\nmodel: {config: m}\n";  // lines 1 and 2

// The refusal of a job file that begins with `head`, with the file called job.yaml.
std::string refusal_of_job(const std::string& rest, const std::vector<std::string>& overrides = {},
                           const std::string& beginning = head) {
  const TemporaryFile file("job.yaml", beginning + rest);
  std::string text = refusal_of([&] { read_job(file.path(), overrides); });
  const std::string path = file.path().string();
  for (size_t at; (at = text.find(path)) != std::string::npos;) text.replace(at, path.size(), "job.yaml");
  return text;
}

std::string refusal_of_overrides(const std::vector<std::string>& overrides) {
  return refusal_of([&] { job_from_overrides(overrides); });
}

TEST(JobRefusal, unknown_names_get_the_nearest) {
  EXPECT_EQ(refusal_of_job("moe:\n  moe_load_balencing: none\n"),
            "unknown key moe.moe_load_balencing. Did you mean moe.moe_load_balancing?   (job.yaml, line 4)");
  EXPECT_EQ(refusal_of_job("optimiser: {lr: 1}\n"),
            "unknown section optimiser. Did you mean optimizer?   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("lr: 1\n"), "unknown section lr. Did you mean optimizer.lr?   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("memory: {sequence_length: 3}\n"),
            "unknown key memory.sequence_length. Did you mean data.sequence_length?   (job.yaml, line 3)");
  EXPECT_EQ(
      refusal_of_job("memory: {sm_activation_ofloading: true}\n"),
      "unknown key memory.sm_activation_ofloading. Did you mean memory.sm_activation_offloading?   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("metrics: {a_thing: 3}\n"),
            "unknown key metrics.a_thing.\n       The keys of metrics are tensorboard, log_every, record_routing.   "
            "(job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("zzzzzz: {a_thing: 3}\n"),
            "unknown section zzzzzz.\n       The sections are run, model, train, adapter, data, parallel, memory, moe, "
            "precision, optimizer, "
            "schedule, checkpoint, validation, metrics.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("[a]: 3\n"),
            "unknown section a list.\n       The sections are run, model, train, adapter, data, parallel, memory, moe, "
            "precision, optimizer, "
            "schedule, checkpoint, validation, metrics.   (job.yaml, line 3)");
}

TEST(JobRefusal, wrong_types) {
  EXPECT_EQ(refusal_of_job("data:\n  micro_batch_size: two\n"),
            "data.micro_batch_size is two, but it must be a whole number.   (job.yaml, line 4)");
  EXPECT_EQ(refusal_of_job("data: {micro_batch_size: 1.5}\n"),
            "data.micro_batch_size is 1.5, but it must be a whole number.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("data: {micro_batch_size: \"2\"}\n"),
            "data.micro_batch_size is \"2\", but it must be a whole number. Remove the quotes.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("data: {micro_batch_size: }\n"),
            "data.micro_batch_size is null, but it must be a whole number.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("optimizer: {lr: fast}\n"),
            "optimizer.lr is fast, but it must be a number.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("optimizer: {lr: \"fast\"}\n"),
            "optimizer.lr is \"fast\", but it must be a number.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("optimizer: {lr: nan}\n"),
            "optimizer.lr is nan, but it must be a number of double precision.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("optimizer: {lr: 1e999}\n"),
            "optimizer.lr is 1e999, but it must be a number of double precision.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("metrics: {tensorboard: yes}\n"),
            "metrics.tensorboard is yes, but it must be true or false.   (job.yaml, line 3)");
  EXPECT_EQ(
      refusal_of_job("data: {train: {a: b}}\n"),
      "data.train is a group of keys, but it must be a path, or a list of {path, weight, name}.   (job.yaml, line "
      "3)");
  EXPECT_EQ(refusal_of_job("data: {train: ''}\n"),
            "data.train is \"\", but it must be a path that is not empty.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("model: {config: {a: b}}\n", {}, "run: {output_dir: out}\n"),
            "model.config is a group of keys, but it must be a path.   (job.yaml, line 2)");
  EXPECT_EQ(refusal_of_job("schedule: 3\n"), "schedule is 3, but it must be a group of keys.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_overrides({"run.name="}), "run.name is null, but it must be text.   (--set run.name=)");
  EXPECT_EQ(refusal_of_overrides({"run.name=''"}),
            "run.name is \"\", but it must be text that is not empty.   (--set run.name='')");
}

TEST(JobRefusal, out_of_range) {
  EXPECT_EQ(refusal_of_overrides({"run.steps=0"}), "run.steps is 0, but it must be at least 1.   (--set run.steps=0)");
  EXPECT_EQ(refusal_of_overrides({"run.seed=9223372036854775808"}),
            "run.seed is 9223372036854775808, but it must be a whole number of at most 18 digits.   "
            "(--set run.seed=9223372036854775808)");
  EXPECT_EQ(refusal_of_overrides({"optimizer.lr=0"}),
            "optimizer.lr is 0, but it must be more than 0.   (--set optimizer.lr=0)");
  EXPECT_EQ(refusal_of_overrides({"optimizer.beta1=1.0"}),
            "optimizer.beta1 is 1.0, but it must be at least 0 and less than 1.   (--set optimizer.beta1=1.0)");
  EXPECT_EQ(refusal_of_overrides({"optimizer.beta2=-0.1"}),
            "optimizer.beta2 is -0.1, but it must be at least 0 and less than 1.   (--set optimizer.beta2=-0.1)");
  EXPECT_EQ(refusal_of_overrides({"data.sequence_length=4294967296"}),
            "data.sequence_length is 4294967296, but it must be at most 16777216.   (--set "
            "data.sequence_length=4294967296)");
  EXPECT_EQ(refusal_of_overrides({"data.global_batch_size=0"}),
            "data.global_batch_size is 0, but it must be at least 1.   (--set data.global_batch_size=0)");
}

TEST(JobRefusal, wrong_choices) {
  EXPECT_EQ(refusal_of_overrides({"run.device=gpu"}),
            "run.device is gpu, but it must be auto, cpu or cuda.   (--set run.device=gpu)");
  EXPECT_EQ(refusal_of_overrides({"schedule.kind=cosin"}),
            "schedule.kind is cosin, but it must be cosine, linear or constant.   "
            "(--set schedule.kind=cosin)");
  EXPECT_EQ(refusal_of_overrides({"precision.reduce=auto"}),
            "precision.reduce is auto, but it must be fp32 or bf16.   (--set precision.reduce=auto)");
  EXPECT_EQ(refusal_of_overrides({"schedule.kind=null"}),
            "schedule.kind is null, but it must be cosine, linear or constant.   (--set schedule.kind=null)");
}

TEST(JobRefusal, known_but_not_in_this_version) {
  EXPECT_EQ(refusal_of_overrides({"run.deterministic=false"}),
            "run.deterministic is false, which is not supported in this version (every path of it is deterministic); "
            "use true."
            "   (--set run.deterministic=false)");
}

TEST(JobRefusal, of_fp8_beside_what_it_cannot_go_with) {
  EXPECT_EQ(refusal_of_job("precision: {experts: fp8, compute: fp32}\n"),
            "precision.experts is fp8, but precision.compute is fp32, and fp8 products begin and end in bf16.\n"
            "       Set precision.compute to bf16 or auto, or precision.experts to compute.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_overrides({"run.device=cpu", "precision.experts=fp8"}),
            "precision.experts is fp8, but run.device is cpu, and no CPU has fp8 products.\n"
            "       Set precision.experts to compute, or run on an H100 or H200.   (--set precision.experts=fp8)");
  EXPECT_EQ(refusal_of_job("precision: {experts: fp8}\n"), "accepted");
  EXPECT_EQ(refusal_of_overrides({"precision.experts=fp32"}),
            "precision.experts is fp32, but it must be compute or fp8.   (--set precision.experts=fp32)");
}

TEST(JobRefusal, of_what_dispatch_does_not_do_together) {
  EXPECT_EQ(
      refusal_of_overrides({"moe.capacity_factor=1.25", "moe.drop_policy=position", "moe.global_token_shuffle=true"}),
      "accepted");
  EXPECT_EQ(refusal_of_overrides({"moe.overload=spill", "moe.spill_least_rows=1", "moe.dispatch_chunks=1"}),
            "accepted");
  EXPECT_EQ(refusal_of_overrides({"moe.capacity_factor=0"}),
            "moe.capacity_factor is 0, but it must be more than 0.   (--set moe.capacity_factor=0)");
  EXPECT_EQ(refusal_of_overrides({"moe.drop_policy=position"}),
            "moe.drop_policy is position, but moe.capacity_factor is null: no token is dropped.\n"
            "       Set moe.drop_policy to null, or give moe.capacity_factor, for example 1.25.   "
            "(--set moe.drop_policy=position)");
  EXPECT_EQ(refusal_of_overrides({"moe.drop_policy=probs"}),
            "moe.drop_policy is probs, but it must be probability or position.   (--set moe.drop_policy=probs)");
  EXPECT_EQ(refusal_of_overrides({"moe.spill_least_rows=64"}), "accepted") << "null can be spill";
  EXPECT_EQ(refusal_of_overrides({"moe.spill_least_rows=64", "moe.overload=none"}),
            "moe.spill_least_rows is 64, but moe.overload is none, which does not use it.\n"
            "       Set moe.spill_least_rows to its default, null, or moe.overload to spill.   "
            "(--set moe.spill_least_rows=64)");
  EXPECT_EQ(refusal_of_overrides({"moe.spill_threshold=1.1", "moe.dispatcher=all_gather"}),
            "moe.spill_threshold is 1.1, but moe.overload is null, which does not use it.\n"
            "       Set moe.spill_threshold to its default, 1.3, or moe.overload to spill.   "
            "(--set moe.spill_threshold=1.1)");
  EXPECT_EQ(refusal_of_overrides({"moe.dispatcher=all_gather"}), "accepted") << "the default lends nothing then";
  EXPECT_EQ(refusal_of_overrides({"moe.dispatch_chunks=2"}), "accepted");
  EXPECT_EQ(refusal_of_overrides({"moe.max_tokens_per_rank_factor=2", "moe.overload=spill"}),
            "moe.max_tokens_per_rank_factor is 2.0, but moe.overload is spill, which does not use it.\n"
            "       Set moe.max_tokens_per_rank_factor to its default, 1.5, or moe.overload to chunk.   "
            "(--set moe.max_tokens_per_rank_factor=2)");
  EXPECT_EQ(refusal_of_overrides({"moe.overload=chunk", "moe.dispatcher=all_gather"}),
            "moe.overload is chunk, but moe.dispatcher is all_gather, with which every rank gets all tokens.\n"
            "       Set moe.dispatcher to all_to_all, or moe.overload to none.   (--set moe.overload=chunk)");
  EXPECT_EQ(refusal_of_overrides({"moe.dispatch_chunks=2", "moe.overload=chunk"}),
            "moe.dispatch_chunks is 2, but moe.overload is chunk, which divides a layer's work by itself.\n"
            "       Set moe.dispatch_chunks to 1 or null, or moe.overload to none.   (--set moe.dispatch_chunks=2)");
}

TEST(JobRefusal, given_twice) {
  EXPECT_EQ(refusal_of_job("optimizer:\n  lr: 1\n  beta1: 0\n  lr: 1\n"),
            "optimizer.lr is given twice, in lines 4 and 6.\n       Keep one of them.   (job.yaml, line 6)");
  EXPECT_EQ(refusal_of_job("run: {steps: 3}\n"),
            "run is given twice, in lines 1 and 3.\n       Keep one of them.   (job.yaml, line 3)");
}

TEST(JobRefusal, two_names_that_disagree) {
  EXPECT_EQ(refusal_of_job("parallel: {random_seed: 5}\nmoe:\n  random_seed: 6\n"),
            "moe.random_seed is 6, but parallel.random_seed is 5, and both mean run.seed.\n"
            "       Keep one of them (job.yaml, line 3).   (job.yaml, line 5)");
  EXPECT_EQ(refusal_of_job("memory: {activation_offloading: false}\nparallel: {sm_activation_offloading: true}\n"),
            "parallel.sm_activation_offloading is true, but memory.activation_offloading is false, and both mean "
            "memory.activation_offloading.\n       Keep one of them (job.yaml, line 3).   (job.yaml, line 4)");
  // The same value in other words is no contradiction.
  EXPECT_EQ(refusal_of_job("memory: {activation_offloading: false}\nparallel: {sm_activation_offloading: False}\n"),
            "accepted");
}

TEST(JobRefusal, missing) {
  EXPECT_EQ(refusal_of_job("run: {output_dir: a}\n", {}, ""),
            "model.config is missing, and every job needs it: a Hugging Face config.json, or its folder.\n"
            "       Add it to the section model, or give --set model.config=...   (job.yaml)");
  EXPECT_EQ(
      refusal_of_job("model: {config: a}\nrun: {output_dir: null}\n", {}, ""),
      "run.output_dir is missing, and every job needs it: the folder of the resolved job, metrics, checkpoints and "
      "exports.\n       Add it to the section run, or give --set run.output_dir=...   (job.yaml)");
  EXPECT_EQ(refusal_of_job("", {"run.output_dir=a", "model.config=b"}, ""), "accepted");
  EXPECT_EQ(refusal_of([] { require(Job(), "data.train"); }),
            "data.train is missing, and this command needs it: prefix of a .bin/.idx pair, or a list of {path, weight, "
            "name}: a blend of several.\n"
            "       Add it to the job file, or give --set data.train=...");
  EXPECT_NE(refusal_of([] { require(Job(), "data.validation"); }), "accepted");
  EXPECT_EQ(refusal_of([] {
              require(job_from_overrides({"data.train=a", "data.validation=b"}), "data.train");
            }),
            "accepted");
  EXPECT_EQ(refusal_of([] { require(job_from_overrides({"data.validation=b"}), "data.validation"); }), "accepted");
  EXPECT_THROW(require(Job(), "data.tran"), InvariantError);
  EXPECT_THROW(require(Job(), "run.steps"), InvariantError);  // always there
}

TEST(JobRefusal, values_that_do_not_fit_each_other) {
  EXPECT_EQ(refusal_of_job("schedule: {warmup_steps: 1001}\n"),
            "schedule.warmup_steps is 1001, but run.steps is 1000 (the default): the warm-up would not end.\n"
            "       Use at most 1000 warm-up steps, or more steps.   (job.yaml, line 3)");
  EXPECT_EQ(
      refusal_of_job("optimizer: {lr: 1e-6}\n"),
      "schedule.min_lr is 1e-05 (the default), but optimizer.lr is 1e-06, and the learning rate falls from lr to "
      "min_lr.\n"
      "       Set schedule.min_lr to at most 1e-06, for example 1e-07 (a tenth of lr) or 0.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("optimizer: {lr: 1e-6}\nschedule: {kind: constant}\n"), "accepted");
  EXPECT_EQ(
      refusal_of_job("memory: {activation_offloading: true}\n"),
      "memory.activation_offloading is true, but memory.activation_checkpointing is none, and only the kept inputs of "
      "recomputed layers are offloaded.\n"
      "       Set memory.activation_checkpointing to full or selective, or memory.activation_offloading to false.   "
      "(job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("moe: {moe_load_balancing: none, moe_aux_loss_coeff: 0.01}\n"),
            "moe.moe_aux_loss_coeff is 0.01, but moe.moe_load_balancing is none, which does not use it.\n"
            "       Set moe.moe_aux_loss_coeff to null, or moe.moe_load_balancing to aux_loss.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("moe: {moe_load_balancing: sinkhorn, aux_loss_scope: rank}\n"),
            "moe.aux_loss_scope is rank, but moe.moe_load_balancing is sinkhorn, which does not use it.\n"
            "       Set moe.aux_loss_scope to all_ranks, or moe.moe_load_balancing to aux_loss.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_job("moe: {moe_load_balancing: bias, aux_loss_layers: each}\n"),
            "moe.aux_loss_layers is each, but moe.moe_load_balancing is bias, which does not use it.\n"
            "       Set moe.aux_loss_layers to null, or moe.moe_load_balancing to aux_loss.   (job.yaml, line 3)");
  EXPECT_EQ(refusal_of_overrides({"model.init_from=a", "model.upcycle_from=b"}),
            "model.init_from is a and model.upcycle_from is b, but a run starts from one of them.\n"
            "       Give init_from a folder of the same model, or upcycle_from one of a dense model.   (--set "
            "model.upcycle_from=b)");
  EXPECT_EQ(refusal_of_overrides({"model.upcycle_noise=0.1"}),
            "model.upcycle_noise is 0.1, but there is no model.upcycle_from, and without it nothing uses it.\n"
            "       Give model.upcycle_from, or set model.upcycle_noise to 0.   (--set model.upcycle_noise=0.1)");
  EXPECT_EQ(refusal_of_overrides({"model.upcycle_from=b", "model.upcycle_reinit_fraction=1.5"}),
            "model.upcycle_reinit_fraction is 1.5, but it must be at least 0 and at most 1.   (--set "
            "model.upcycle_reinit_fraction=1.5)");
  EXPECT_EQ(
      refusal_of_job("moe: {bias_update_rate: 0.01}\n"),
      "moe.bias_update_rate is 0.01, but moe.moe_load_balancing is aux_loss, which does not use it.\n"
      "       Set moe.bias_update_rate to its default, 0.001, or moe.moe_load_balancing to bias.   (job.yaml, line 3)");
  EXPECT_EQ(
      refusal_of_job("moe: {moe_load_balancing: balanced, sinkhorn_iterations: 9, sinkhorn_tolerance: 0.1}\n"),
      "moe.sinkhorn_tolerance is 0.1, but moe.moe_load_balancing is balanced, which does not use it.\n"
      "       Set moe.sinkhorn_tolerance to its default, 0.01, or moe.moe_load_balancing to sinkhorn.   (job.yaml, "
      "line 3)\n"
      "error: moe.sinkhorn_iterations is 9, but moe.moe_load_balancing is balanced, which does not use it.\n"
      "       Set moe.sinkhorn_iterations to its default, 50, or moe.moe_load_balancing to sinkhorn.   (job.yaml, "
      "line 3)");
  EXPECT_EQ(refusal_of_job("moe: {moe_load_balancing: sinkhorn, sinkhorn_iterations: 9}\n"), "accepted");
  EXPECT_EQ(refusal_of_job("validation: {every: 10}\n"),
            "validation.every is 10, but there is no data.validation.\n"
            "       Give data.validation, the prefix of a .bin/.idx pair, or set validation.every to 0.   (job.yaml, "
            "line 3)");
  EXPECT_EQ(refusal_of_job("checkpoint: {resume: alwyas}\n"),
            "checkpoint.resume is alwyas (" + (std::filesystem::current_path() / "alwyas").string() +
                "), but there is no such folder.\n"
                "       Use auto, never or the path of a checkpoint folder.   (job.yaml, line 3)");
  const TemporaryFile file("a", "");
  EXPECT_EQ(refusal_of_overrides({"checkpoint.resume=" + file.folder().string()}), "accepted");
}

TEST(JobRefusal, all_mistakes_at_once_in_the_order_of_the_file) {
  EXPECT_EQ(
      refusal_of_job("optimizer:\n  beta1: 2\n  lr: x\nmoe: {a_thing: 1}\nrun: {}\n", {"run.steps=0"}),
      "optimizer.beta1 is 2, but it must be at least 0 and less than 1.   (job.yaml, line 4)\n"
      "error: optimizer.lr is x, but it must be a number.   (job.yaml, line 5)\n"
      "error: unknown key moe.a_thing.\n"
      "       The keys of moe are moe_load_balancing, moe_aux_loss_coeff, aux_loss_scope, aux_loss_layers, "
      "moe_z_loss_coeff, sinkhorn_tolerance, sinkhorn_iterations, bias_update_rate, dispatcher, "
      "dispatch_chunks, global_token_shuffle, capacity_factor, drop_policy, overload, max_tokens_per_rank_factor, "
      "spill_threshold, spill_least_rows, router_jitter_noise, smp_moe, moe_all_to_all_dispatcher, "
      "random_seed.   (job.yaml, line 6)\n"
      "error: run is given twice, in lines 1 and 7.\n"
      "       Keep one of them.   (job.yaml, line 7)\n"
      "error: run.steps is 0, but it must be at least 1.   (--set run.steps=0)");
}

// A rule between two keys says nothing when one of them was refused itself: lr counts as its default then.
TEST(JobRefusal, a_refused_value_has_no_second_refusal) {
  EXPECT_EQ(refusal_of_job("schedule: {min_lr: 0.5}\noptimizer: {lr: x}\n"),
            "optimizer.lr is x, but it must be a number.   (job.yaml, line 4)");
}

TEST(JobRefusal, files_that_are_no_job) {
  EXPECT_EQ(refusal_of([] { read_job("/nonexistent/job.yaml"); }),
            "the job file /nonexistent/job.yaml cannot be read: No such file or directory.\n"
            "       Give the path of a YAML or JSON file, or - for standard input.");
  const TemporaryFile file("a", "");
  EXPECT_EQ(refusal_of([&] { read_job(file.folder()); }),
            "the job file " + file.folder().string() +
                " cannot be read: it is a folder.\n"
                "       Give the path of a YAML or JSON file, or - for standard input.");
  EXPECT_EQ(refusal_of_job("moe: {\n"),
            "the job file is not valid YAML: end of map flow not found.   (job.yaml, line 4, column 1)");
  EXPECT_EQ(refusal_of_job("---\na: b\n"),
            "the job file holds 2 YAML documents, but it must be one.\n"
            "       Remove the lines `---` and what follows the first document.   (job.yaml)");
  EXPECT_EQ(refusal_of_job("- a\n", {}, ""),
            "the job file is a list, but it must be a group of sections.\n       The sections are run, model, train, "
            "adapter, data, "
            "parallel, "
            "memory, moe, precision, optimizer, schedule, checkpoint, validation, metrics.   (job.yaml)");
  EXPECT_NE(refusal_of_job("", {}, ""), "accepted");  // an empty file misses its required keys
}

TEST(JobRefusal, overrides_that_are_none) {
  for (const std::string text : {"run.steps", "run.=3", "=3", ""}) {
    EXPECT_EQ(refusal_of_overrides({text}),
              "--set " + text + " is not of the form section.key=value.\n       Write it like --set run.steps=100.");
  }
  for (const std::string text : {"steps=3", ".steps=3", "stesp=3"}) {
    EXPECT_EQ(refusal_of_overrides({text}), "--set " + text +
                                                " is not of the form section.key=value.\n"
                                                "       Did you mean --set run.steps=3?");
  }
  EXPECT_EQ(refusal_of_overrides({"rnu.steps=3"}),
            "unknown key rnu.steps. Did you mean run.steps?   (--set rnu.steps=3)");
  EXPECT_EQ(refusal_of_overrides({"run.name=[a"}),
            "the value of run.name is not valid YAML: end of sequence flow not found.\n"
            "       Put text with special characters into quotes.   (--set run.name=[a)");
}

// Oracle: micro-steps x sequences of one micro-step = global batch, multiplied out.
TEST(MicroSteps, times_sequences_at_once_is_the_batch) {
  Job job;
  EXPECT_EQ(micro_steps_per_step(job, 64), 1);
  for (int64_t micro_batch : {1, 2, 3}) {
    for (int world : {1, 2, 6}) {
      for (int64_t batch = 1; batch <= 40; ++batch) {
        job.data.micro_batch_size = micro_batch;
        job.data.global_batch_size = batch;
        int64_t steps = 0, sequences = 0;
        while (sequences < batch) {
          ++steps;
          sequences += micro_batch * world;
        }
        if (sequences == batch) {
          EXPECT_EQ(micro_steps_per_step(job, world), steps);
        } else {
          EXPECT_THROW(micro_steps_per_step(job, world), UserError);
        }
      }
    }
  }
}

TEST(MicroSteps, refusal_names_the_nearest_batch_sizes) {
  EXPECT_EQ(
      refusal_of_job("data: {micro_batch_size: 4, global_batch_size: 10}\n"),
      "data.global_batch_size is 10, but a micro-step of each rank takes 4 sequences (data.micro_batch_size is 4) and "
      "must fit a whole number of times.\n       Use 8 or 12.   (job.yaml, line 3)");
  const Job job = job_from_overrides({"data.micro_batch_size=2", "data.global_batch_size=10"});
  EXPECT_EQ(
      refusal_of([&] { micro_steps_per_step(job, 4); }),
      "data.global_batch_size is 10, but a micro-step of 4 ranks takes 8 sequences (data.micro_batch_size is 2) and "
      "must fit a whole number of times.\n       Use 8 or 16.   (--set data.global_batch_size=10)");
  EXPECT_EQ(
      refusal_of([&] { micro_steps_per_step(job, 16); }),
      "data.global_batch_size is 10, but a micro-step of 16 ranks takes 32 sequences (data.micro_batch_size is 2) and "
      "must fit a whole number of times.\n       Use 32.   (--set data.global_batch_size=10)");
}

}  // namespace
}  // namespace conclave
