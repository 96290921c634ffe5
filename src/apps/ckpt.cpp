// conclave ckpt: look at, check and convert checkpoints.
#include "apps/ckpt.h"

#include <fmt/core.h>

#include <iostream>

#include "apps/command.h"
#include "base/error.h"
#include "base/log.h"
#include "base/shown_path.h"
#include "checkpoint/checkpoint_folder.h"
#include "families/family.h"

namespace conclave {
namespace {

// A run's folder has the resolved job from its first step on, and checkpoints only once one is saved.
void refuse_run_that_saved_nothing(const std::filesystem::path& given) {
  const bool is_run = std::filesystem::exists(given / "job.yaml") && std::filesystem::exists(given / "metrics.jsonl");
  if (!is_run || !list_checkpoints(given / "checkpoints").empty()) return;
  user_error(
      "{} is a run that has saved no checkpoint.\n       A run saves its last step, unless it is killed or its "
      "job.yaml "
      "has checkpoint.every: 0 and checkpoint.every_minutes: 0.",
      given.string());
}

}  // namespace

std::filesystem::path checkpoints_folder_of(const std::filesystem::path& given) {
  if (!list_checkpoints(given).empty()) return given;
  std::filesystem::path inner = given / "checkpoints";
  if (std::filesystem::is_directory(inner)) return inner;
  if (std::filesystem::is_directory(given) && given.filename() == inner.filename()) return given;
  user_error("{} holds no checkpoints. Give a run's folder (run.output_dir), or the checkpoints folder in it.",
             given.string());
}

std::filesystem::path checkpoint_of(const std::filesystem::path& given) {
  if (!std::filesystem::is_directory(given)) user_error("there is no folder {}.", shown_path(given));
  if (std::filesystem::exists(given / manifest_file_name)) return given;
  refuse_run_that_saved_nothing(given);
  if (list_checkpoints(given).empty() && !std::filesystem::is_directory(given / "checkpoints"))
    user_error("{} is not a checkpoint: it has no {}.", given.string(), manifest_file_name);
  const std::filesystem::path folder = checkpoints_folder_of(given);
  const std::optional<std::filesystem::path> newest = newest_checkpoint(folder);
  if (!newest) user_error("{} holds no checkpoint that is whole.", folder.string());
  spdlog::info("the newest checkpoint: {}", newest->string());
  return *newest;
}

uint64_t bytes_of_files(const std::filesystem::path& checkpoint) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoint)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

ModelConfig model_of(const CheckpointReader& checkpoint) {
  const std::string& text = checkpoint.state().model_config;
  if (text.empty())
    user_error("checkpoint {} does not say which model it is of: its manifest holds no model config.",
               checkpoint.path().string());
  return parse_model_config(text,
                            fmt::format("the model config in {}", (checkpoint.path() / manifest_file_name).string()));
}

void OutputOptions::write(const std::string& command, uint64_t bytes,
                          const std::function<void(const BytesDone&)>& work) const {
  double seconds = 0;
  {
    ByteProgress progress(command, bytes, quiet ? ByteProgress::Show::never : ByteProgress::Show::on_terminal);
    work([&](uint64_t more) { progress.add(more); });
    seconds = progress.seconds();
  }
  if (quiet) return;
  fmt::print("wrote {}: {} in {:.1f} s, {}/s\n", output.string(), byte_count(bytes), seconds,
             byte_count(static_cast<uint64_t>(static_cast<double>(bytes) / std::max(seconds, 1e-9))));
}

void add_output_options(CLI::App& command, OutputOptions& options, const std::string& name, const std::string& help) {
  command.add_option(name, options.output, help)->required();
  command.add_flag("--overwrite", options.overwrite,
                   "replace the folder if it is there: the old one stays until the new one is whole");
  command.add_flag("--quiet", options.quiet, "no progress and no report");
}

void add_ckpt(CLI::App& app, int& exit_code) {
  CLI::App* ckpt = app.add_subcommand("ckpt", "look at, check and convert checkpoints: no ranks, no GPU");
  ckpt->require_subcommand(1);
  ckpt->preparse_callback([](size_t) { set_up_logging(0, 1); });
  ckpt->footer(
      "What is there?            conclave ckpt list runs/mine\n"
      "Is it undamaged?          conclave ckpt verify runs/mine/checkpoints/step-00000100\n"
      "For Transformers:         conclave ckpt export runs/mine model --tokenizer tokenizer\n"
      "From Transformers:        conclave ckpt import model runs/mine/checkpoints/step-00000000\n\n"
      "Where a checkpoint is asked for, a run's folder means its newest one. Nothing that exists is overwritten unless "
      "--overwrite says so. Exit codes: 0 done; 1 failure, or: verify found damage, diff found differences; 2 a "
      "mistake "
      "in the input.");
  add_ckpt_list(*ckpt);
  add_ckpt_show(*ckpt);
  add_ckpt_verify(*ckpt, exit_code);
  add_ckpt_diff(*ckpt, exit_code);
  add_ckpt_export(*ckpt);
  add_ckpt_import(*ckpt);
  add_ckpt_merge(*ckpt);
  add_ckpt_reshard(*ckpt);
  add_ckpt_average(*ckpt);
  add_ckpt_prune(*ckpt);
  add_ckpt_go_back(*ckpt);
  add_ckpt_dcp(*ckpt);
}

}  // namespace conclave
