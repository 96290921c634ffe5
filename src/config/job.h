// The job: one struct per concern, as written in job.yaml. The description of the fields (help, range, choices) is in
// fields.h; this file says what exists and what its default is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "config/duration.h"
#include "config/mistake.h"
#include "config/reshard_rule.h"

namespace conclave {

enum class WantedDevice { automatic, cpu, cuda };
enum class ActivationCheckpointing { none, selective, full };
enum class LoadBalancing { none, aux_loss, sinkhorn, balanced, bias };
enum class AuxLossTokens { all_ranks, rank };
enum class AuxLossRows { together, each };
enum class DispatcherKind { all_to_all, all_gather };
enum class DropPolicy { probability, position };
enum class OverloadPolicy { none, chunk, spill };
enum class Precision { automatic, fp32, bf16 };
enum class ExpertPrecision { compute, fp8 };
enum class RouterPrecision { compute, fp32 };
enum class ScheduleKind { cosine, linear, constant };
enum class OnDamage { fall_back, stop };

struct RunConfig {
  std::string name = "conclave";
  std::filesystem::path output_dir;  // required
  int64_t steps = 1000;
  int64_t seed = 1234;
  WantedDevice device = WantedDevice::automatic;
  bool deterministic = true;                // only true: every path of this version is deterministic
  int64_t timeout_seconds = 300;            // a collective that takes longer means a lost or hung rank
  std::optional<Duration> stop_after = {};  // the run has saved and ended when its process is so old
};

struct ModelSource {
  std::filesystem::path config;  // required: a Hugging Face config.json or its folder
  std::optional<std::filesystem::path>
      init_from;  // a Hugging Face checkpoint folder to start from; random initialization without it
  std::optional<std::filesystem::path>
      upcycle_from;            // a folder of a dense Mistral or Llama, whose MLP each expert starts as
  double upcycle_noise = 0.0;  // added to each expert, relative to the standard deviation of the dense weights
  double upcycle_reinit_fraction = 0.0;      // of each expert's intermediate units, drawn anew
  std::optional<int64_t> resize_vocabulary;  // ids of the model, whatever the source's; null: as model.config says
  bool shrink_vocabulary = false;            // resize_vocabulary may drop the source's last ids
};

struct DataConfig {
  std::filesystem::path train;                      // required for training: prefix of a .bin/.idx pair
  std::optional<std::filesystem::path> validation;  // prefix of a .bin/.idx pair
  int64_t sequence_length = 2048;                   // tokens of one sample
  int64_t micro_batch_size = 1;                     // sequences per rank and micro-step
  std::optional<int64_t>
      global_batch_size;  // sequences per step over all ranks; default: micro_batch_size x world size
};

struct ParallelConfig {
  int64_t expert_parallel_degree = 1;
  int64_t hybrid_shard_degree = 0;    // shards beside the expert axis; 0: as many as there are ranks for
  bool elastic = false;               // the degrees above are the most: on another world the nearest that fit are taken
  int64_t prefetch_units = 1;         // units gathered ahead of the one that computes; 0: none
  ReshardRule reshard_after_forward;  // which units do not stay gathered from forward to backward
};

struct MemoryConfig {
  ActivationCheckpointing activation_checkpointing = ActivationCheckpointing::none;
  bool activation_offloading =
      false;  // kept layer inputs go to host memory (CPU run: to a scratch file); needs checkpointing
  int64_t activation_loading_horizon = 2;  // the most layers whose offloaded inputs are on the device at once
  std::optional<std::filesystem::path> offload_folder;  // of a CPU run's scratch files; default: run.output_dir
  int64_t loss_chunk_tokens = 1024;                     // tokens whose logits are alive at once
};

struct MoeConfig {
  LoadBalancing moe_load_balancing = LoadBalancing::aux_loss;
  std::optional<double> moe_aux_loss_coeff = {};            // default: the model's own router_aux_loss_coef
  AuxLossTokens aux_loss_scope = AuxLossTokens::all_ranks;  // whose tokens of a micro-step aux_loss is taken over
  std::optional<AuxLossRows> aux_loss_layers = {};          // over which layers' rows at once; default: checked_job.h
  double moe_z_loss_coeff = 0.0;
  double sinkhorn_tolerance = 0.01;  // of an expert's demand, relative to the mean
  int64_t sinkhorn_iterations = 50;  // at most
  double bias_update_rate = 0.001;   // by which a step changes an expert's selection bias
  DispatcherKind dispatcher = DispatcherKind::all_to_all;
  std::optional<int64_t> dispatch_chunks = {};     // default: 2 where an expert group spans hosts, else 1
  bool global_token_shuffle = false;               // tokens change ranks at random before they are dispatched
  std::optional<double> capacity_factor = {};      // default: no token is dropped
  std::optional<DropPolicy> drop_policy = {};      // default: probability, where there is a capacity
  std::optional<OverloadPolicy> overload = {};     // default: checked_job.h
  double max_tokens_per_rank_factor = 1.5;         // of chunk: the most rows at once on a rank, over the mean
  double spill_threshold = 1.3;                    // of spill: rows of the busiest rank over the mean; above: lends
  std::optional<int64_t> spill_least_rows = {};    // of spill: the fewest rows an expert's weights travel for; default:
                                                   // 128 on CPUs, 2048 on GPUs
  std::optional<double> router_jitter_noise = {};  // default: the model's own
};

struct PrecisionConfig {
  Precision compute = Precision::automatic;  // automatic: bf16 where the hardware has it, else fp32
  Precision reduce = Precision::fp32;        // gradients are reduced in fp32 or, for half the traffic, in bf16
  ExpertPrecision experts = ExpertPrecision::compute;  // of the experts' products: as `compute`, or fp8 by blocks
  RouterPrecision router = RouterPrecision::fp32;      // of the router's logits and their gradient
};

struct OptimizerConfig {
  double lr = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.2;
  double grad_clip = 1.0;  // 0: none
  int64_t max_skipped_steps =
      5;  // steps with a non-finite loss or gradient are skipped; the job stops after this many in a row
};

struct ScheduleConfig {
  ScheduleKind kind = ScheduleKind::cosine;
  int64_t warmup_steps = 0;
  double min_lr = 1e-5;
};

struct CheckpointConfig {
  int64_t every = 0;            // steps between checkpoints; 0: none by steps
  double every_minutes = 30;    // minutes between checkpoints; 0: none by time
  int64_t keep = 2;             // newest checkpoints kept
  int64_t keep_every = 0;       // checkpoints of every so many steps are kept for good; 0: none
  bool async = true;            // written while the next steps run
  std::string resume = "auto";  // auto: the newest of output_dir, if any; never; or the path of a checkpoint folder
  bool verify = true;           // on loading, hashes are compared
  OnDamage on_damage = OnDamage::fall_back;
  std::optional<std::string> allow_changed;  // keys, with commas between them, whose change does not stop a resumed run
  int64_t export_every = 0;                  // steps between exports to a Hugging Face folder; 0: none
  int64_t export_keep = 0;                   // newest exports kept; 0: all

  // Where one of the two says when to save, the last step is saved too; else nothing is.
  bool saves() const { return every > 0 || every_minutes > 0; }
};

struct ValidationConfig {
  int64_t every = 0;      // steps between validations; 0: none
  int64_t samples = 128;  // of the set, from its beginning, whatever the layout; 0: the whole set
};

struct MetricsConfig {
  bool tensorboard = true;
  int64_t log_every = 1;        // steps between progress lines; metrics.jsonl has every step
  bool record_routing = false;  // rows of each step, layer, rank and expert (moe/routing_record.h)
};

struct Job {
  RunConfig run;
  ModelSource model;
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

}  // namespace conclave
