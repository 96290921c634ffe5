// The exports that a run writes while it trains (checkpoint.export_every): Hugging Face folders, by all ranks together.
#pragma once

#include <cstdint>
#include <filesystem>

#include "train/parallel_job.h"

namespace conclave {

inline std::filesystem::path exports_folder(const Job& job) {
  return job.run.output_dir / "export";
}

// Collective: writes the parameters as they are to export/step-<step>/ in fp32, in place of an older export of that
// step, and then removes all but the newest checkpoint.export_keep exports (0: none). The tokenizer of model.init_from
// or model.upcycle_from, if it has one, goes along. A failure of the machine costs that export alone: it is a warning,
// and older exports stay.
void export_run(ParallelJob& job, int64_t step);

}  // namespace conclave
