// conclave ckpt reshard, average and prune: checkpoints made of checkpoints, and fewer of them.
#include <fmt/core.h>

#include <memory>

#include "apps/ckpt.h"
#include "apps/command_line.h"
#include "base/error.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_rewrite.h"

namespace conclave {

void add_ckpt_reshard(CLI::App& ckpt) {
  struct Options {
    std::filesystem::path checkpoint;
    int64_t files = 1;
    OutputOptions output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand("reshard", "write a checkpoint again, divided over another number of files");
  command->add_option("checkpoint", options->checkpoint, "a checkpoint's folder, or a run's")->required();
  add_output_options(*command, options->output, "output", "the checkpoint's folder to write");
  command->add_option("--files", options->files, "the number of files")->check(CLI::Range(1, 99999));
  command->footer(
      "A resume does not need this: any number of ranks at any layout reads any checkpoint, each rank its part of each "
      "file. It helps where files are moved one by one, or their number or size is limited.");
  command->callback([options] {
    CheckpointReader from(checkpoint_of(options->checkpoint));
    const uint64_t bytes = bytes_of_tensors(from.manifest());
    options->output.write("reshard", bytes, [&](const BytesDone& done) {
      reshard_checkpoint(from, options->output.output, options->files, options->output.when_there(), done);
    });
  });
}

void add_ckpt_average(CLI::App& ckpt) {
  struct Options {
    std::vector<std::filesystem::path> checkpoints;
    OutputOptions output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand("average", "the mean of the parameters of several checkpoints of a model");
  command->add_option("checkpoints", options->checkpoints, "two or more checkpoints' folders")
      ->required()
      ->expected(2, 1 << 20);
  add_output_options(*command, options->output, "--output", "the checkpoint's folder to write");
  command->footer(
      "The parameters are summed in fp32 and divided by the number of checkpoints, each of the same weight. Step, "
      "moments and everything else are the last one's, so that a run can go on from the result "
      "(checkpoint.resume: PATH), and `conclave ckpt export` makes a Hugging Face folder of it.");
  command->callback([options] {
    for (const std::filesystem::path& path : options->checkpoints)
      if (!std::filesystem::exists(path / manifest_file_name))
        user_error("{} is not a checkpoint: it has no {}.", path.string(), manifest_file_name);
    const uint64_t bytes = bytes_of_tensors(CheckpointReader(options->checkpoints.back()).manifest());
    options->output.write("average", bytes, [&](const BytesDone& done) {
      average_checkpoints(options->checkpoints, options->output.output, options->output.when_there(), done);
    });
  });
}

void add_ckpt_prune(CLI::App& ckpt) {
  struct Options {
    std::filesystem::path folder;
    int64_t keep = 0;
    int64_t keep_every = 0;
    bool dry_run = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand("prune", "remove a run's older checkpoints, as training does while it saves");
  command->add_option("folder", options->folder, "a run's folder, or its checkpoints folder")->required();
  command->add_option("--keep", options->keep, "whole ones to keep, the newest (as checkpoint.keep)")
      ->required()
      ->check(above_zero());
  command
      ->add_option("--keep-every", options->keep_every,
                   "keep for good those whose step is a multiple of this (as checkpoint.keep_every); 0: none")
      ->check(zero_or_more());
  command->add_flag("--dry-run", options->dry_run, "say what would be removed, and remove nothing");
  command->callback([options] {
    const std::filesystem::path folder = checkpoints_folder_of(options->folder);
    const auto superfluous = checkpoints_to_prune(folder, {options->keep, options->keep_every});
    for (const std::filesystem::path& checkpoint : superfluous) {
      if (!options->dry_run) remove_checkpoint(checkpoint);
      fmt::print("{} {}\n", options->dry_run ? "would remove" : "removed", checkpoint.string());
    }
    if (superfluous.empty()) fmt::print("nothing to remove\n");
  });
}

}  // namespace conclave
