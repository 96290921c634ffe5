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
  std::vector<std::string> fitted;              // what parallel.elastic changed, in words
  std::vector<std::string> warnings;            // what is odd in what was read, and no mistake
  std::optional<int64_t> document_tokens = {};  // that a plan assumes of each document; none: a sequence is one
  std::string base_fingerprint = {};            // of the weights that an adapter lies beside; empty: they are drawn

  // Of one micro-step and one rank.
  int64_t tokens_per_rank() const { return job.data.micro_batch_size * job.data.sequence_length; }
  // Of all ranks.
  int64_t sequences_per_micro_step() const { return job.data.micro_batch_size * layout.world_size(); }
  int64_t sequences_per_step() const { return sequences_per_micro_step() * micro_steps; }
  int64_t tokens_per_step() const { return sequences_per_step() * job.data.sequence_length; }

  // The job's, or the model's own.
  double aux_coefficient() const;  // 0 under another rule than aux_loss
  double jitter_noise() const { return job.moe.router_jitter_noise.value_or(model.router_jitter_noise); }
};

// Whether an expert group lies on more than one host (node) of so many ranks.
bool spans_hosts(const CheckedJob& job, int64_t ranks_per_host);
// `host_of_rank`: the number of each rank's host. The same on all ranks, however many each host has.
bool spans_hosts(const CheckedJob& job, const std::vector<int>& host_of_rank);

// Puts values for the nulls of moe.overload and moe.dispatch_chunks. Within a host experts are lent (spill): its links
// bring their weights for few rows. Rows that cross a network travel in a second part instead, beside the experts'
// computation (docs/dispatch.md). All ranks of an expert group give one `spans_hosts`. Returns why no experts are
// lent, in words; empty: they are, or the job says what to do, or nothing travels.
std::string choose_dispatch(CheckedJob& job, bool spans_hosts);

// Puts a value for the null of moe.aux_loss_layers: a published model goes on as Transformers trains it, any other
// evens out each layer. Throws UserError. (run/job_and_model.h reads the model.)
CheckedJob check_job(Job job, const ModelConfig& model, int world_size);

}  // namespace conclave
