// conclave plan: what a job needs before anybody pays for it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iostream>
#include <memory>

#include "apps/command.h"
#include "apps/command_line.h"
#include "apps/plan_report.h"
#include "apps/replay_report.h"
#include "base/error.h"
#include "base/log.h"
#include "data/document_length.h"
#include "run/job_and_model.h"
#include "run/model_source.h"
#include "step/open_data.h"

namespace conclave {
namespace {

std::filesystem::path routing_file_at(const std::filesystem::path& file_or_run) {
  if (!std::filesystem::is_directory(file_or_run)) return file_or_run;
  const std::filesystem::path file = file_or_run / routing_file_name;
  if (!std::filesystem::exists(file))
    user_error("--routing is {}, a folder without {}: its run recorded no routing (metrics.record_routing).",
               file_or_run.string(), routing_file_name);
  return file;
}

// None without data.document_mask. `given`: 0: as the training data has them, if it is there.
std::optional<int64_t> planned_document_tokens(const CheckedJob& job, int64_t given) {
  const DataConfig& data = job.job.data;
  if (given > 0 && !data.document_mask)
    user_error(
        "--document-tokens is {}, but documents see each other (data.document_mask is false).\n       Set it to true, "
        "or leave the option out.",
        given);
  if (!data.document_mask) return std::nullopt;
  if (given > data.sequence_length)
    user_error(
        "--document-tokens is {}, but a document ends with its sequence (data.sequence_length {}). Use at most {}.",
        given, data.sequence_length, data.sequence_length);
  if (given > 0) return given;
  try {
    return document_length_of_tokens(*open_training(job.job, job.model.vocab_size));
  } catch (const UserError&) {  // a plan needs no data
    spdlog::warn(
        "data.train cannot be read, so the plan takes each sequence for one document; --document-tokens says how long "
        "documents are");
    return data.sequence_length;
  }
}

}  // namespace

void add_plan(CLI::App& app, int& exit_code) {
  struct Options {
    JobOptions job;
    int world = 1;
    std::string device;
    double imbalance = 1.0;
    bool search = false;
    bool json = false;
    int64_t top = 15;
    std::string routing;
    int64_t routing_steps = 100;
    int64_t document_tokens = 0;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("plan", "memory, traffic and time of a job's step on a device, without running anything");
  add_job_options(*command, options->job);
  command->add_option("--world", options->world, "the number of ranks the job is for")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--device", options->device,
                      fmt::format("{}, or the path of a YAML file (default: cpu for run.device: cpu, else h100-80)",
                                  fmt::join(built_in_devices(), ", ")));
  command
      ->add_option("--imbalance", options->imbalance,
                   "routed rows of the busiest rank over the mean of its expert group; 1: even")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  command->add_flag("--search", options->search, "also try all layouts and memory settings for this world");
  command->add_option("--top", options->top, "layouts that --search shows of each kind; 0: all")
      ->check(zero_or_more())
      ->capture_default_str();
  command->add_option(
      "--routing", options->routing,
      "replay the routing that a run recorded (metrics.record_routing): routing.bin, or the run's folder");
  command->add_option("--routing-steps", options->routing_steps, "steps of it that are run on paper; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--document-tokens", options->document_tokens,
                   "with data.document_mask: tokens of every document (default: as data.train has them)")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "print one JSON object (docs/plan.md); --search is complete in it");
  command->footer(
      "conclave plan examples/mixtral-8x7b.yaml --world 64 --device h100-80 --search\n\n"
      "Needs no data, no GPU and no other process. A job that does not fit is an answer, not a mistake: the exit code "
      "is "
      "0, and\n`fits` in the JSON object is false. Memory and traffic are what the engine counts (metrics.jsonl), time "
      "is "
      "an estimate.\n\n"
      "A device is described by these keys, here h100-80's:\n\n" +
      print_device(read_device("h100-80")));
  command->callback([options] {
    CheckedJob job = check_job_and_model(read_job(options->job.file, options->job.overrides), options->world);
    check_model_source(job);
    job.document_tokens = planned_document_tokens(job, options->document_tokens);
    tell_warnings(job);
    const std::string name = !options->device.empty()                  ? options->device
                             : job.job.run.device == WantedDevice::cpu ? "cpu"
                                                                       : "h100-80";
    const DeviceDescription device = read_device(name);
    const Plan plan = make_plan(job, name, device, options->imbalance);
    std::optional<Replay> replayed;
    if (!options->routing.empty())
      replayed = replay(RoutingRecord(routing_file_at(options->routing)), plan.job, device, options->routing_steps);
    std::optional<LayoutSearch> search;
    if (options->search) search = search_layouts(job, device, options->imbalance);
    if (options->json) {
      std::cout << plan_json(plan, search, replayed);
    } else {
      std::cout << plan_text(plan);
      if (replayed) std::cout << replay_text(*replayed, device);
      if (search) std::cout << search_text(*search, options->top);
    }
    std::cout << std::flush;
  });
  (void)exit_code;  // a mistake leaves by an exception
}

}  // namespace conclave
