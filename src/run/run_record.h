// The parts of a step's record (metrics/record.h): the step itself, how the experts were loaded, what came of each
// source, and what a run was started with.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "base/parameter_declaration.h"
#include "config/model_config.h"
#include "metrics/record.h"
#include "moe/dead_experts.h"
#include "moe/load_statistics.h"
#include "step/parallel_job.h"
#include "step/step_exchange.h"

namespace conclave {

// What is known of a step beside its report.
struct StepCourse {
  double lr = 0;
  int64_t tokens = 0;  // of the run, this step's included
  double tokens_per_second = 0;
  double seconds = 0;
};
// `highest`: over the ranks.
MetricsRecord record_of_step(const StepReport& report, const RankExtremes& highest, const StepCourse& course);

enum class LoadDetail { brief, by_layer };

// `brief`: one number for the model, or a short list. `by_layer`: also what there is of each layer and expert, under
// names that end in `_by_layer`. Those lists have an entry for each layer of the model.
void append_load(MetricsRecord& record, const ModelConfig& model, const LoadStatistics& load,
                 const DeadExperts& dead_experts, LoadDetail detail);

// Of each source of a blend: its tokens that were read until sample `samples`, and of the step the targets that were
// trained on and their mean loss (null: there were none).
void append_sources(MetricsRecord& record, const Blend& blend, int64_t samples, const StepReport& report);
// Names and mean losses of the step's sources, for people; empty: there is one source.
std::vector<std::pair<std::string, double>> losses_of(const Blend& blend, const StepReport& report);

// The model's size, a step's, and in what it is computed, for the log.
std::string what_is_computed(const ParallelJob& job, const std::vector<UnitDeclaration>& declared);

// Of the first step after a start: after which step it went on (0: from the beginning), on what, with which versions.
void append_start(MetricsRecord& record, const ParallelJob& job, int64_t started_after);

}  // namespace conclave
