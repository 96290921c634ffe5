// The weights that a run starts from, and what must be right about them before any rank starts.
#pragma once

#include "mesh/checked_job.h"
#include "step/parallel_job.h"

namespace conclave {

// Refuses, with a UserError, the folder in model.init_from or model.upcycle_from when it does not fit the model: by its
// config.json, then by the tensors in its files, then by its tokenizer. Reads no weights, but for a tied head that is
// stored beside the embedding. Does nothing when the job goes on from a checkpoint, which holds the weights, unless
// they lie beside an adapter. Likewise the folder in adapter.init_from.
void check_model_source(const CheckedJob& job);

// The model's parameters from a Hugging Face folder, whose config.json must be that of the model.
void load_hugging_face(ParallelJob& job, const std::filesystem::path& folder);

// The adapter a new run starts with, if it has one: that of adapter.init_from, or PEFT's initialization. It is
// allocated.
void start_adapter(ParallelJob& job);

// What an adapter lies beside, which its checkpoints do not hold: the parameters of model.init_from, or the declared
// initialization.
void start_base(ParallelJob& job);

// The parameters a new run starts with: those of model.init_from, of the dense model in model.upcycle_from, or the
// declared initialization. They are allocated. Collective.
void start_parameters(ParallelJob& job);

}  // namespace conclave
