// What the subcommands share: how one is registered, and how a rank of a job starts and ends.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "step/parallel_job.h"

namespace conclave {

// Each adds its subcommand to `app`; the command runs when it was chosen, and its exit code goes to `exit_code`.
void add_train(CLI::App& app, int& exit_code);
void add_validate(CLI::App& app, int& exit_code);
void add_plan(CLI::App& app, int& exit_code);
void add_eval(CLI::App& app, int& exit_code);
void add_trace(CLI::App& app, int& exit_code);
void add_generate(CLI::App& app, int& exit_code);
void add_chat(CLI::App& app, int& exit_code);
void add_ckpt(CLI::App& app, int& exit_code);
void add_data(CLI::App& app, int& exit_code);
void add_bench(CLI::App& app, int& exit_code);
void add_report(CLI::App& app, int& exit_code);

// The options of every command that reads a job file.
struct JobOptions {
  std::string file;
  std::vector<std::string> overrides;  // section.key=value
};
void add_job_options(CLI::App& command, JobOptions& options);

// The option of commands that run on several ranks.
void add_ranks_option(CLI::App& command, int& ranks);

// Runs `body` as the rank that this process is. With --ranks N in a process that is no rank of several, the job is
// first checked here, so that a mistake is said once and at once, and then this very command line is started N times.
//
// `read` gives the job; `body` is called with it laid over the ranks. Errors are told to the other ranks, and printed
// once. `check` is what else can be refused before --ranks N starts any rank; `body` must refuse it too.
int run_on_ranks(
    int ranks, const std::function<Job()>& read, const std::function<void(ParallelJob&)>& body,
    const std::function<void(const CheckedJob&)>& check = [](const CheckedJob&) {});

// The same for a job that is no file's.
int run_on_ranks(
    int ranks, const std::function<CheckedJob(int world)>& make, const std::function<void(ParallelJob&)>& body,
    const std::function<void(const CheckedJob&)>& check = [](const CheckedJob&) {});

// What is odd about a job and no mistake, on standard error; for commands without ranks, whose ranks say it themselves.
void tell_warnings(const CheckedJob& job);

// Prints an error as users see it and returns its exit code.
int report_error(const std::exception& error, bool print = true);

}  // namespace conclave
