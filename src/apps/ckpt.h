// What the subcommands of `conclave ckpt` share. All of them work on folders, in one process, without ranks and GPUs.
#pragma once

#include <CLI/CLI.hpp>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_blocks.h"
#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/output_folder.h"
#include "checkpoint/tensor_slice.h"
#include "config/model_config.h"
#include "metrics/byte_progress.h"

namespace conclave {

// Each adds one or two subcommands of `ckpt`.
void add_ckpt_list(CLI::App& ckpt);
void add_ckpt_show(CLI::App& ckpt);
void add_ckpt_verify(CLI::App& ckpt, int& exit_code);
void add_ckpt_diff(CLI::App& ckpt, int& exit_code);
void add_ckpt_reshard(CLI::App& ckpt);
void add_ckpt_average(CLI::App& ckpt);
void add_ckpt_prune(CLI::App& ckpt);
void add_ckpt_go_back(CLI::App& ckpt);
void add_ckpt_export(CLI::App& ckpt);
void add_ckpt_import(CLI::App& ckpt);
void add_ckpt_merge(CLI::App& ckpt);
void add_ckpt_dcp(CLI::App& ckpt);

// The folder with the step-* folders, given itself or as the run.output_dir that has it as `checkpoints`. UserError:
// there is none.
std::filesystem::path checkpoints_folder_of(const std::filesystem::path& given);

// The checkpoint that the user names: its folder, or a run's, whose newest one is taken.
std::filesystem::path checkpoint_of(const std::filesystem::path& given);

// Of the files that are there: also of a checkpoint whose manifest cannot be read.
uint64_t bytes_of_files(const std::filesystem::path& checkpoint);

// The model that a checkpoint is of, as it remembers it.
ModelConfig model_of(const CheckpointReader& checkpoint);

// The options of commands that write a folder.
struct OutputOptions {
  std::filesystem::path output;
  bool overwrite = false;
  bool quiet = false;

  Overwrite when_there() const { return overwrite ? Overwrite::replace : Overwrite::refuse; }
  // Writes the folder by `work`, which says how many more bytes are done, with a progress line; then one line of what
  // was done, with the rate. Neither when quiet.
  void write(const std::string& command, uint64_t bytes, const std::function<void(const BytesDone&)>& work) const;
};
// `name`: "output" for a positional argument, "--output" for an option.
void add_output_options(CLI::App& command, OutputOptions& options, const std::string& name, const std::string& help);

}  // namespace conclave
