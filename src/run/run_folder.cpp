#include "run/run_folder.h"

#include <fmt/format.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/damaged_checkpoint.h"
#include "checkpoint/together.h"
#include "data/fingerprint.h"
#include "families/family.h"
#include "run/abandoned_history.h"
#include "run/data_position.h"
#include "run/model_source.h"
#include "run/resume_choice.h"
#include "run/same_run.h"
#include "step/compute_precision.h"

namespace conclave {
namespace {

constexpr const char* key_freeze = "train.freeze";

void append_slices(std::vector<TensorSlice>& out, ParallelJob& job, std::string_view kind,
                   ParallelModel::Replicas replicas) {
  for (TensorSlice& slice : job.model().slices(kind, replicas, ParallelModel::Which::kept)) {
    slice.name = state_tensor_name(kind, slice.name);
    out.push_back(std::move(slice));
  }
}

RunIdentity identity_of(const ParallelJob& job, const std::string& data_fingerprint) {
  return identity_of(job.checked(), precision_name(job.compute()), data_fingerprint);
}

// What resuming loads of a checkpoint: all that the run keeps. Parameters that were frozen when it was written have no
// optimizer state there: theirs begins as zeros.
std::vector<TensorSlice> slices_to_resume(ParallelJob& job, const CheckpointReader& checkpoint,
                                          const RunIdentity& identity, std::vector<std::string>& said) {
  std::vector<TensorSlice> slices;
  for (const std::string& kind : job.model().kept()) append_slices(slices, job, kind, ParallelModel::Replicas::all);
  const auto was = checkpoint.state().job.find(key_freeze);
  if (was == checkpoint.state().job.end() || was->second == identity.values.at(key_freeze)) return slices;
  const std::string of_parameters = state_tensor_name(kind_parameter, "");
  const size_t begun_anew = std::erase_if(slices, [&](const TensorSlice& slice) {
    return !slice.name.starts_with(of_parameters) && !checkpoint.manifest().tensors.contains(slice.name);
  });
  if (begun_anew > 0) said.push_back("the optimizer's state of parameters that were frozen begins as zeros");
  return slices;
}

TrainingPosition position_of(const CheckpointState& state) {
  return {state.step,         state.samples,          state.tokens, state.updates, state.skipped_in_a_row,
          state.resumed_from, state.data_fingerprint, state.values};
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

}  // namespace

std::map<std::string, std::string> versions() {
  return {{"conclave", CONCLAVE_VERSION}, {"torch", TORCH_VERSION}};
}

CheckpointState checkpoint_state(ParallelJob& job, const TrainingPosition& position) {
  CheckpointState state;
  state.step = position.step;
  state.samples = position.samples;
  state.tokens = position.tokens;
  state.seed = static_cast<uint64_t>(job.job().run.seed);
  state.updates = position.updates;
  state.skipped_in_a_row = position.skipped_in_a_row;
  state.data_fingerprint = position.data_fingerprint;
  state.resumed_from = position.resumed_from;
  const RunIdentity identity = identity_of(job, position.data_fingerprint);
  state.job = identity.values;
  state.model_config = identity.model_config;
  for (Axis axis : {Axis::world, Axis::replica, Axis::shard, Axis::expert_replica, Axis::expert_shard, Axis::expert})
    state.layout[name_of(axis)] = job.layout().degree(axis);
  state.layout[layout_key_micro_step] = job.sequences_per_micro_step();
  state.versions = versions();
  state.values = position.values;
  return state;
}

std::vector<TensorSlice> slices_to_save(ParallelJob& job) {
  std::vector<TensorSlice> slices;
  for (const std::string& kind : job.model().kept()) append_slices(slices, job, kind, ParallelModel::Replicas::shared);
  return slices;
}

namespace {

// What model.init_from or model.upcycle_from names is where a run began: nothing of it is read again.
void say_what_is_not_read(const ModelSource& source, const std::filesystem::path& checkpoint) {
  for (const auto& [key, folder] : {std::pair("init_from", source.init_from), {"upcycle_from", source.upcycle_from}})
    if (folder)
      spdlog::info(
          "model.{} is {}, but the run goes on from {}: the weights are that checkpoint's, and nothing of {} is read.",
          key, folder->string(), checkpoint.string(), folder->string());
}

}  // namespace

std::optional<TrainingPosition> resume(ParallelJob& job, const Blend& training) {
  const std::string data_fingerprint = fingerprint(training);
  const RunIdentity identity = identity_of(job, data_fingerprint);
  const HashCheck hashes = hash_check(job.job());
  ResumeChoice choice;
  together(job.host_world(), [&] {  // rank 0's: files may change while ranks look
    if (job.is_first()) choice = choose_resume(job.job());
  });
  const bool may_fall_back = job.max_over_world({static_cast<double>(choice.may_fall_back)})[0] != 0;
  std::vector<std::string> said;
  std::string origin;
  bool has_base = !job.job().adapter.exists();
  std::optional<LoadedCheckpoint> loaded;
  try {
    loaded = load_agreed(choice.candidates, job.host_world(), may_fall_back ? WhenDamaged::try_next : WhenDamaged::stop,
                         hashes, [&](const CheckpointReader& checkpoint) {
                           said = check_same_run(job.checked(), identity, checkpoint.state(), checkpoint.path());
                           origin = origin_after(job.job(), checkpoint.path(), checkpoint.manifest());
                           if (!std::exchange(has_base, true)) start_base(job);
                           return slices_to_resume(job, checkpoint, identity, said);
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
  const DataPosition in_data =
      position_in_data(loaded->state, training, data_fingerprint, static_cast<uint64_t>(job.job().run.seed));
  position.samples = in_data.sample;
  position.data_fingerprint = data_fingerprint;  // an imported checkpoint has none yet
  position.resumed_from = origin;
  if (!in_data.said.empty()) said.push_back(in_data.said);
  if (job.is_first())
    for (const std::string& line : said) spdlog::warn(line);
  if (!job.job().adapter.exists()) say_what_is_not_read(job.job().model, loaded->path);
  if (const auto path = path_to_resume(job.job()); path && loaded->path != *path)
    spdlog::info(
        "checkpoint.resume is {}, from which this run went on already: it goes on from its own newest checkpoint. To "
        "go back once more, {}.",
        path->string(),
        is_own_checkpoint(job.job(), *path) ? "first run conclave ckpt go-back " + path->string()
                                            : "use another run.output_dir");
  together(job.host_world(), [&] {
    if (job.is_first() && loaded->path == path_to_resume(job.job()))
      abandon_history_after(job.job(), loaded->path, loaded->state.step);
  });
  return position;
}

ModelSource source_of_run(const CheckpointState& state) {
  std::vector<std::string> given;
  for (const char* key : {"model.init_from", "model.upcycle_from"}) {
    const auto found = state.job.find(key);
    if (found != state.job.end()) given.push_back(fmt::format("{}={}", key, found->second));
  }
  return job_from_overrides(given).model;
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
  if (job.job().adapter.exists()) start_base(job);
  const auto loaded = load_agreed(candidates, job.host_world(), checkpoint ? WhenDamaged::stop : WhenDamaged::try_next,
                                  hashes, [&](const CheckpointReader&) {
                                    std::vector<TensorSlice> slices;
                                    append_slices(slices, job, kind_parameter, ParallelModel::Replicas::all);
                                    return slices;
                                  });
  if (!loaded)
    user_error(
        "{} holds no checkpoint. Train with checkpoint.every or checkpoint.every_minutes above 0, or name one by "
        "--checkpoint or --hugging-face.",
        checkpoints_folder(job.job()).string());
  report_load(job, *loaded, hashes);
  return loaded->state.values;
}

}  // namespace conclave
