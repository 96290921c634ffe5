// All that the steps of a job depend on besides weights and data, with no default left open: what the job says, else
// what its model says, else what suits the device. Made once (step_settings()), for the engine and a plan alike.
#pragma once

#include <filesystem>

#include "mesh/checked_job.h"
#include "moe/balancing.h"
#include "moe/capacity.h"
#include "moe/dispatch_settings.h"
#include "moe/selection_settings.h"
#include "sharding/flat_parameter.h"

namespace conclave {

struct StepSettings {
  FlatParameterOptions parameters;  // where they are, in which dtypes they are computed with and reduced
  int64_t prefetch_units = 1;
  ReshardRule reshard_after_forward;

  RouterPrecision router = RouterPrecision::fp32;
  double jitter_noise = 0;  // of what router and experts see, in training only
  uint64_t seed = 0;
  SelectionSettings selection;
  CapacityOptions capacity;
  DispatchSettings dispatch;
  AuxLossOptions aux_loss;
  double aux_coefficient = 0;
  double z_coefficient = 0;

  ActivationCheckpointing checkpointing = ActivationCheckpointing::none;
  bool offloads = false;  // the inputs of recomputed layers
  std::filesystem::path offload_folder;
  int64_t loading_horizon = 2;
  int64_t loss_chunk_tokens = 1024;

  int64_t tokens_per_micro_step = 0;  // of this rank, at most
  int64_t micro_steps = 1;
  OptimizerConfig optimizer;
  bool records_routing = false;
};

// `job`: its dispatch is chosen (choose_dispatch()). `compute`: the dtype that all ranks agreed on.
StepSettings step_settings(const CheckedJob& job, at::ScalarType compute, at::Device device);

}  // namespace conclave
