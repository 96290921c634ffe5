#include "train/run_folder.h"

#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/damaged_checkpoint.h"
#include "config/job_difference.h"
#include "train/compute_precision.h"

namespace conclave {
namespace {

constexpr const char* key_micro_step = "sequences_per_micro_step";  // of the layout

struct NamedQuantity {
  ParallelModel::Quantity quantity;
  std::string_view kind;
};
constexpr NamedQuantity quantities[] = {{ParallelModel::Quantity::parameter, kind_parameter},
                                        {ParallelModel::Quantity::exp_avg, kind_exp_avg},
                                        {ParallelModel::Quantity::exp_avg_sq, kind_exp_avg_sq}};

void append_slices(std::vector<TensorSlice>& out, ParallelJob& job, const NamedQuantity& named,
                   ParallelModel::Replicas replicas) {
  for (TensorSlice& slice : job.model().slices(named.quantity, replicas)) {
    slice.name = state_tensor_name(named.kind, slice.name);
    out.push_back(std::move(slice));
  }
}

// The job's values; those that stand for something else as what they stand for.
KeyValues resolved_values(const ParallelJob& job) {
  KeyValues values = values_of(job.job());
  values["data.global_batch_size"] = std::to_string(job.sequences_per_step());
  values["precision.compute"] = precision_name(job.compute());
  values["moe.moe_aux_loss_coeff"] = fmt::format("{}", job.aux_coefficient());
  values["moe.router_jitter_noise"] =
      fmt::format("{}", job.job().moe.router_jitter_noise.value_or(job.model_config().router_jitter_noise));
  return values;
}

KeyValues with_model(KeyValues values, const std::string& model_config) {
  values.merge(values_of_model(model_config));
  return values;
}

// Of the job with the one a checkpoint is of.
void check_same_run(const ParallelJob& job, const std::string& data_fingerprint, const CheckpointState& state,
                    const std::filesystem::path& checkpoint) {
  // An imported checkpoint is of a model alone: of no job and no data yet.
  const KeyValues values = resolved_values(job);
  std::vector<Difference> differences =
      differences_that_matter(with_model(values, hugging_face_config_json(job.model_config(), "float32")),
                              with_model(state.job.empty() ? values : state.job, state.model_config));
  if (!state.data_fingerprint.empty() && state.data_fingerprint != data_fingerprint)
    differences.push_back({"data.train",
                           fmt::format("{} with fingerprint {}", job.job().data.train.string(), data_fingerprint),
                           fmt::format("data with fingerprint {}", state.data_fingerprint)});
  const std::vector<std::string> allowed = keys_allowed_to_change(job.job());
  std::string lines;
  std::vector<std::string> keys;
  for (const Difference& difference : differences) {
    const std::string key = difference.key.substr(0, difference.key.find(':'));  // model.config: hidden_size
    const std::string line = fmt::format("{} is {}, was {}", difference.key, difference.is, difference.was);
    if (std::find(allowed.begin(), allowed.end(), key) != allowed.end()) {
      if (job.is_first()) spdlog::warn("going on with a change that checkpoint.allow_changed allows: {}", line);
      continue;
    }
    lines += "\n         " + line;
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  }
  if (!keys.empty())
    user_error(
        "this job is not the one that {} is of:{}\n       Set it back, use another run.output_dir, or go on all the "
        "same with --set checkpoint.allow_changed={}",
        checkpoint.string(), lines, fmt::join(keys, ","));

  const auto before = state.layout.find(key_micro_step);
  if (before != state.layout.end() && before->second != job.sequences_per_micro_step() && job.aux_coefficient() > 0 &&
      job.is_first())
    spdlog::warn(
        "a micro-step has {} sequences now, and had {}: the balancing loss, which spans one, is of another number of "
        "tokens. data.micro_batch_size x ranks of {} would keep it.",
        job.sequences_per_micro_step(), before->second, before->second);
}

TrainingPosition position_of(const CheckpointState& state) {
  return {state.step, state.updates, state.skipped_in_a_row, state.data_fingerprint, state.values};
}

void report_load(ParallelJob& job, const LoadedCheckpoint& loaded, HashCheck hashes) {
  const double gigabytes = job.sum_over_world({static_cast<double>(loaded.bytes)})[0] / 1e9;
  spdlog::info("loaded step {} from {}: {:.2f} GB in {:.1f} s, {:.2f} GB/s, {}", loaded.state.step,
               loaded.path.string(), gigabytes, loaded.seconds, gigabytes / std::max(loaded.seconds, 1e-9),
               hashes == HashCheck::verify ? "hashes verified" : "hashes not verified (checkpoint.verify)");
}

HashCheck hash_check(const Job& job) {
  return job.checkpoint.verify ? HashCheck::verify : HashCheck::skip;
}

// Empty, with a UserError where the run would mix with an earlier one.
std::vector<std::filesystem::path> resume_candidates(const Job& job) {
  const std::filesystem::path folder = checkpoints_folder(job);
  if (job.checkpoint.resume == "auto") return checkpoints_to_try(folder);
  if (job.checkpoint.resume != "never") return {job.checkpoint.resume};
  if (!list_checkpoints(folder).empty())
    user_error(
        "checkpoint.resume is never, but {} holds checkpoints of an earlier run, which this one would mix with its "
        "own. Use another "
        "run.output_dir, or checkpoint.resume: auto to go on with that run.",
        folder.string());
  return {};
}

}  // namespace

std::map<std::string, std::string> versions() {
  return {{"conclave", CONCLAVE_VERSION}, {"torch", TORCH_VERSION}};
}

CheckpointState checkpoint_state(ParallelJob& job, const TrainingPosition& position) {
  CheckpointState state;
  state.step = position.step;
  state.samples = position.step * job.sequences_per_step();
  state.seed = static_cast<uint64_t>(job.job().run.seed);
  state.updates = position.updates;
  state.skipped_in_a_row = position.skipped_in_a_row;
  state.data_fingerprint = position.data_fingerprint;
  state.job = resolved_values(job);
  state.model_config = hugging_face_config_json(job.model_config(), "float32");
  for (Axis axis : {Axis::world, Axis::replica, Axis::shard, Axis::expert_replica, Axis::expert_shard, Axis::expert})
    state.layout[name_of(axis)] = job.layout().degree(axis);
  state.layout[key_micro_step] = job.sequences_per_micro_step();
  state.versions = versions();
  state.values = position.values;
  return state;
}

std::vector<TensorSlice> slices_to_save(ParallelJob& job) {
  std::vector<TensorSlice> slices;
  for (const NamedQuantity& named : quantities) append_slices(slices, job, named, ParallelModel::Replicas::shared);
  return slices;
}

std::optional<TrainingPosition> resume(ParallelJob& job, const std::string& data_fingerprint) {
  const std::vector<std::filesystem::path> candidates = resume_candidates(job.job());
  const HashCheck hashes = hash_check(job.job());
  // A checkpoint that was asked for by its name is that one or none.
  const bool may_fall_back =
      job.job().checkpoint.on_damage == OnDamage::fall_back && job.job().checkpoint.resume == "auto";
  std::optional<LoadedCheckpoint> loaded;
  try {
    loaded = load_agreed(candidates, job.host_world(), may_fall_back ? WhenDamaged::try_next : WhenDamaged::stop,
                         hashes, [&](const CheckpointReader& checkpoint) {
                           check_same_run(job, data_fingerprint, checkpoint.state(), checkpoint.path());
                           std::vector<TensorSlice> slices;
                           for (const NamedQuantity& named : quantities)
                             append_slices(slices, job, named, ParallelModel::Replicas::all);
                           return slices;
                         });
  } catch (const DamagedCheckpoint& damage) {
    user_error("{}\n       {}", damage.what(),
               may_fall_back ? "No other checkpoint of the run is whole. Remove them to start from the beginning."
                             : "checkpoint.on_damage: fall_back with checkpoint.resume: auto goes on from the newest "
                               "one that is whole.");
  }
  if (!loaded) return std::nullopt;
  report_load(job, *loaded, hashes);
  TrainingPosition position = position_of(loaded->state);
  position.data_fingerprint = data_fingerprint;  // an imported checkpoint has none yet
  return position;
}

CheckpointState state_of_imported(const ModelConfig& model) {
  CheckpointState state;
  state.model_config = hugging_face_config_json(model, "float32");
  return state;
}

std::map<std::string, std::vector<double>> load_parameters(ParallelJob& job,
                                                           const std::optional<std::filesystem::path>& checkpoint) {
  const std::vector<std::filesystem::path> candidates =
      checkpoint ? std::vector{*checkpoint} : checkpoints_to_try(checkpoints_folder(job.job()));
  const HashCheck hashes = hash_check(job.job());
  const auto loaded = load_agreed(candidates, job.host_world(), checkpoint ? WhenDamaged::stop : WhenDamaged::try_next,
                                  hashes, [&](const CheckpointReader&) {
                                    std::vector<TensorSlice> slices;
                                    append_slices(slices, job, quantities[0], ParallelModel::Replicas::all);
                                    return slices;
                                  });
  if (!loaded)
    user_error(
        "{} holds no checkpoint. Train with checkpoint.every > 0, or name one by --checkpoint or --hugging-face.",
        checkpoints_folder(job.job()).string());
  report_load(job, *loaded, hashes);
  return loaded->state.values;
}

}  // namespace conclave
