// Where a command takes a model's parameters from: a checkpoint of the run, or a Hugging Face folder.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

#include "run/checkpoint_values.h"
#include "step/parallel_job.h"

namespace conclave {

struct ParameterSource {
  std::string checkpoint;    // a checkpoint folder of ours; empty: the newest of the run
  std::string hugging_face;  // a Hugging Face folder instead
};

void add_source_options(CLI::App& command, ParameterSource& source);

// Allocates the parameters and fills them. Returns what a checkpoint keeps beside them. UserError when the run has no
// checkpoint.
CheckpointValues load_from(ParallelJob& job, const ParameterSource& source);

}  // namespace conclave
