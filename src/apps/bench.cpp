// conclave bench: what this machine and a job's steps on it reach.
#include "apps/bench.h"

#include <memory>

#include "apps/command.h"
#include "config/job_check.h"

namespace conclave {

void add_bench_of_parts(CLI::App& bench, int& exit_code, const std::string& name, const std::string& help,
                        const std::string& footer,
                        const std::function<void(ParallelJob& job, int64_t repeats, bool json)>& measure) {
  struct Options {
    JobOptions job;
    int ranks = 1;
    int64_t repeats = 20;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(name, help);
  add_job_options(*command, options->job);
  add_ranks_option(*command, options->ranks);
  command->add_option("--repeats", options->repeats, "of each; medians count")->check(CLI::Range(1, 100'000));
  command->add_flag("--json", options->json, "print one JSON object");
  command->footer(footer);
  command->callback([options, measure, &exit_code] {
    const auto read = [options] { return read_job(options->job.file, options->job.overrides); };
    exit_code =
        run_on_ranks(options->ranks, read, [&](ParallelJob& job) { measure(job, options->repeats, options->json); });
  });
}

CLI::App* add_bench_of_steps(CLI::App& bench, int& exit_code, const std::string& name, const std::string& help,
                             const std::string& footer,
                             const std::function<void(ParallelJob& job, ProfileRequest request, bool json)>& measure) {
  struct Options {
    JobOptions job;
    int ranks = 1;
    ProfileRequest request;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = bench.add_subcommand(name, help);
  add_job_options(*command, options->job);
  add_ranks_option(*command, options->ranks);
  command->add_option("--steps", options->request.steps, "measured steps")->check(CLI::Range(1, 1'000'000));
  command->add_option("--untimed", options->request.untimed, "steps before them, not measured")
      ->check(CLI::Range(0, 1'000'000));
  command->add_flag("--json", options->json, "print one JSON object");
  command->footer(footer);
  command->callback([options, measure, &exit_code] {
    const auto read = [options] {
      Job job = read_job(options->job.file, options->job.overrides);
      require(job, "data.train");
      return job;
    };
    exit_code =
        run_on_ranks(options->ranks, read, [&](ParallelJob& job) { measure(job, options->request, options->json); });
  });
  return command;
}

void add_bench(CLI::App& app, int& exit_code) {
  CLI::App* bench = app.add_subcommand("bench", "measure where time goes");
  bench->require_subcommand(1);
  add_bench_step(*bench, exit_code);
  add_bench_layer(*bench, exit_code);
  add_bench_products(*bench, exit_code);
  add_bench_collectives(*bench, exit_code);
  add_bench_machine(*bench, exit_code);
}

}  // namespace conclave
