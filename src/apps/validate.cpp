// conclave validate: everything that can be checked of a job before any process group is made.
#include <iostream>
#include <memory>

#include "apps/command.h"
#include "base/log.h"
#include "data/fingerprint.h"
#include "run/job_and_model.h"
#include "run/model_source.h"
#include "run/output_place.h"
#include "run/resume_choice.h"
#include "step/open_data.h"

namespace conclave {
namespace {

// Whatever training would come upon at some step.
void scan(const IndexedTokens& set) {
  set.check_vocabulary(set.vocab_size());
  if (const TokenMask* mask = set.mask()) mask->check();
}

}  // namespace

void add_validate(CLI::App& app, int& exit_code) {
  struct Options {
    JobOptions job;
    int world = 1;
    bool quiet = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "validate",
      "check a job file, its model, its data, its layout, its output folder and what it goes on from, and print the "
      "resolved job, then OK");
  add_job_options(*command, options->job);
  command->add_option("--world", options->world, "the number of ranks the job is for")->check(CLI::Range(1, 1 << 20));
  command->add_flag("--quiet", options->quiet, "print nothing when the job is right");
  command->callback([options] {
    set_up_logging(0, 1);
    Job read = read_job(options->job.file, options->job.overrides);
    take_over_from_run(read);
    const CheckedJob checked = check_job_and_model(std::move(read), options->world);
    const Job& job = checked.job;
    check_output_place(job);
    std::optional<std::string> data_fingerprint;
    if (!job.data.train.empty()) {
      const auto training = open_training(job, checked.model.vocab_size);
      for (const BlendSource& source : training->sources()) scan(source.stream->set());
      data_fingerprint = fingerprint(*training);
    }
    for (const NamedSet& set : open_validation(job, checked.model.vocab_size)) scan(set.stream->set());
    check_model_source(checked);
    check_resume(checked, data_fingerprint);
    tell_warnings(checked);
    if (options->quiet) return;
    std::cout << print_job(job) << "\n"
              << describe(checked.layout) << "\nmicro-steps per step: " << checked.micro_steps
              << "\nOK: the job is right for " << options->world << (options->world == 1 ? " rank" : " ranks")
              << std::endl;
  });
  (void)exit_code;  // a mistake leaves by an exception
}

}  // namespace conclave
