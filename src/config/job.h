// The job, as written in job.yaml: one struct for each section, whose file (run_section.h, ...) holds its keys,
// defaults and rules.
#pragma once

#include "config/adapter_section.h"
#include "config/checkpoint_section.h"
#include "config/data_section.h"
#include "config/memory_section.h"
#include "config/metrics_section.h"
#include "config/mistake.h"
#include "config/model_section.h"
#include "config/moe_section.h"
#include "config/optimizer_section.h"
#include "config/parallel_section.h"
#include "config/precision_section.h"
#include "config/run_section.h"
#include "config/schedule_section.h"
#include "config/train_section.h"
#include "config/validation_section.h"

namespace conclave {

struct Job {
  RunConfig run;
  ModelSource model;
  TrainConfig train;
  AdapterConfig adapter;
  DataConfig data;
  ParallelConfig parallel;
  MemoryConfig memory;
  MoeConfig moe;
  PrecisionConfig precision;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  CheckpointConfig checkpoint;
  ValidationConfig validation;
  MetricsConfig metrics;

  Origins origins;  // where each key was given; not a key itself
};

// Bound to the members of `job`.
Fields fields_of(Job& job);

}  // namespace conclave
