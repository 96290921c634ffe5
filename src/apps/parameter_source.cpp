#include "apps/parameter_source.h"

#include "run/model_source.h"
#include "run/run_folder.h"

namespace conclave {

void add_source_options(CLI::App& command, ParameterSource& source) {
  auto* checkpoint = command.add_option("--checkpoint", source.checkpoint,
                                        "a checkpoint folder (default: the newest of run.output_dir)");
  command.add_option("--hugging-face", source.hugging_face, "a Hugging Face checkpoint folder instead")
      ->excludes(checkpoint);
}

CheckpointValues load_from(ParallelJob& job, const ParameterSource& source) {
  job.model().allocate_parameters();
  if (!source.hugging_face.empty()) {
    load_hugging_face(job, source.hugging_face);
    start_adapter(job);
    return {};
  }
  return load_parameters(
      job, source.checkpoint.empty() ? std::nullopt : std::optional<std::filesystem::path>(source.checkpoint));
}

}  // namespace conclave
