// conclave train: a training run.
#include <memory>

#include "apps/command.h"
#include "apps/prompts.h"
#include "apps/torchrun_word.h"
#include "base/error.h"
#include "config/job_check.h"
#include "run/model_source.h"
#include "run/profiled_steps.h"
#include "run/resume_choice.h"
#include "run/run_signals.h"
#include "run/trainer.h"

namespace conclave {
namespace {

std::optional<std::filesystem::path> tokenizer_for_samples(const Job& job) {
  if (!job.validation.prompts) return std::nullopt;
  if (job.validation.tokenizer) return job.validation.tokenizer;
  return job.model.init_from ? job.model.init_from : job.model.upcycle_from;
}

}  // namespace

void add_train(CLI::App& app, int& exit_code) {
  struct Options {
    JobOptions job;
    int ranks = 1;
    std::string profile;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("train", "pre-train a model, or go on with a run that was stopped");
  add_job_options(*command, options->job);
  add_ranks_option(*command, options->ranks);
  command->add_option(
      "--profile", options->profile,
      "FIRST:LAST, for example 10:12: write what these steps did, and when, as a Chrome trace of each rank "
      "into run.output_dir/profile");
  command->footer(
      "One machine:    conclave train job.yaml --ranks 2\n"
      "Many machines:  srun conclave train job.yaml\n"
      "                torchrun --no-python --nnodes 8 --node-rank N --nproc-per-node 8 --master-addr HOST "
      "--master-port 29400 conclave train job.yaml\n\n"
      "The same command again goes on from the newest checkpoint of run.output_dir, on any number of ranks.\n"
      "SIGTERM or SIGHUP, SIGINT (Ctrl-C) and SIGUSR1 end the run after the step in hand, with a checkpoint and exit "
      "codes 4, 5 and 6; a second SIGINT ends it at once. run.stop_after sets a deadline, with exit code 6. "
      "SIGUSR2 asks for a checkpoint, and the run goes on.\n\n"
      "The job file\n\n" +
      job_help());
  command->callback([options, &exit_code] {
    answer_signals_while_starting();
    const auto read = [options] {
      Job job = read_job(options->job.file, options->job.overrides);
      require(job, "data.train");
      if (!options->profile.empty()) parse_profiled_steps(options->profile, job.run.steps);
      take_over_from_run(job);
      return job;
    };
    ExitCode ended = exit_success;
    exit_code = run_on_ranks(
        options->ranks, read,
        [&](ParallelJob& job) {
          const std::optional<std::filesystem::path> tokenizer = tokenizer_for_samples(job.job());
          Trainer trainer(job, tokenizer ? start_text_process(job, *tokenizer, {}) : nullptr);
          if (!options->profile.empty()) trainer.profile(parse_profiled_steps(options->profile, job.job().run.steps));
          ended = trainer.run();
        },
        check_model_source);
    if (exit_code != exit_success || ended == exit_success) return;
    exit_code = ended;
    leave_word_for_torchrun("No failure: the run was asked to stop after a step. The same command goes on from there.");
  });
}

}  // namespace conclave
