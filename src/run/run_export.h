// The exports that a run writes while it trains (checkpoint.export_every): Hugging Face folders, by all ranks together.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "checkpoint/hugging_face_export.h"
#include "step/parallel_job.h"

namespace conclave {

inline std::filesystem::path exports_folder(const Job& job) {
  return job.run.output_dir / "export";
}

// What an export says of generation and of its text, from the folder that the run started from, if there is one: its
// tokenizer, chat templates and generation_config.json. `tokenizer`, a folder, is taken for the first two where it is
// given. Returns a warning when the folder is not there any more.
std::optional<std::string> take_along(HuggingFaceExportOptions& options, const ModelSource& source,
                                      const std::optional<std::filesystem::path>& tokenizer = std::nullopt);

// Collective: writes the parameters as they are to export/step-<step>/ in fp32, in place of an older export of that
// step, and then removes all but the newest checkpoint.export_keep exports (0: none). What belongs to the model of
// model.init_from or model.upcycle_from besides its weights goes along (take_along). A failure of the machine costs
// that export alone: it is a warning, and older exports stay.
void export_run(ParallelJob& job, int64_t step);

}  // namespace conclave
