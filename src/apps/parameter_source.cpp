#include "apps/parameter_source.h"

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/checkpoint_folder.h"
#include "train/run_folder.h"

namespace conclave {

void add_source_options(CLI::App& command, ParameterSource& source) {
  auto* checkpoint = command.add_option("--checkpoint", source.checkpoint,
                                        "a checkpoint folder (default: the newest of run.output_dir)");
  command.add_option("--hugging-face", source.hugging_face, "a Hugging Face checkpoint folder instead")
      ->excludes(checkpoint);
}

void load_from(ParallelJob& job, const ParameterSource& source) {
  job.model().allocate_parameters();
  if (!source.hugging_face.empty()) {
    job.model().load_hugging_face(source.hugging_face);
    return;
  }
  std::filesystem::path checkpoint = source.checkpoint;
  if (checkpoint.empty()) {
    const auto newest = newest_checkpoint(checkpoints_folder(job.job()));
    if (!newest)
      user_error(
          "{} holds no checkpoint. Train with checkpoint.every > 0, or name one by --checkpoint or --hugging-face.",
          checkpoints_folder(job.job()).string());
    checkpoint = *newest;
  }
  const TrainingPosition position = load_parameters(job, checkpoint);
  spdlog::info("parameters of step {} from {}", position.step, checkpoint.string());
}

}  // namespace conclave
