// A job whose model fits its layout, and its layout the world: what can be known without other ranks, and what every
// command begins with.
#pragma once

#include "config/job.h"
#include "config/model_config.h"
#include "mesh/layout.h"

namespace conclave {

struct CheckedJob {
  Job job;
  ModelConfig model;
  Layout layout;
  int64_t micro_steps = 1;
  std::vector<std::string> fitted;  // what parallel.elastic changed, in words

  // Of one micro-step and one rank.
  int64_t tokens_per_rank() const { return job.data.micro_batch_size * job.data.sequence_length; }
  int64_t tokens_per_step() const { return tokens_per_rank() * layout.world_size() * micro_steps; }
};

// moe.dispatch_chunks, or where it is null what is chosen on hosts (nodes) of so many ranks: rows that cross a network
// travel beside the experts' computation in a second part; within a host there is little to hide (docs/dispatch.md).
int64_t dispatch_chunks(const CheckedJob& job, int64_t ranks_per_host);

// Reads the model's config. Throws UserError.
CheckedJob check_job(Job job, int world_size);
// For a model that was read before.
CheckedJob check_job(Job job, const ModelConfig& model, int world_size);

}  // namespace conclave
