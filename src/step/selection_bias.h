// The selection bias of a model that has one (DeepSeek-V3's e_score_correction_bias): on disk and in checkpoints a
// parameter like others, though no gradient reaches it; while tokens are routed a tensor of all layers in fp32, the
// same on all ranks, which a balancing rule may change (moe/expert_selection.h).
#pragma once

#include "moe/expert_selection.h"
#include "step/parallel_model.h"

namespace conclave {

// Collective, after the parameters were filled: the selection gets what they hold. Nothing for other models.
void read_selection_bias(ParallelModel& model, ExpertSelection& selection);
// Back into this rank's shards, after the rule changed it. Nothing for other models.
void write_selection_bias(ParallelModel& model, const ExpertSelection& selection);

}  // namespace conclave
