#include "train/run_folder.h"

#include <charconv>

#include "base/error.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/checkpoint_writer.h"

namespace conclave {
namespace {

constexpr const char* key_updates = "updates";
constexpr const char* key_fingerprint = "data_fingerprint";

// What must be the same for a run to go on: by job key, value as text, and why.
std::map<std::string, std::string> identity(const ParallelJob& job) {
  return {{"data.sequence_length", std::to_string(job.job().data.sequence_length)},
          {"data.global_batch_size", std::to_string(job.sequences_per_step())},
          {"run.seed", std::to_string(job.job().run.seed)},
          {"model.config", hugging_face_config_json(job.model_config(), "float32")}};
}

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

TrainingPosition position_of(const CheckpointState& state) {
  TrainingPosition position;
  position.step = state.step;
  position.updates = state.step;
  if (const auto found = state.extra.find(key_updates); found != state.extra.end())
    std::from_chars(found->second.data(), found->second.data() + found->second.size(), position.updates);
  if (const auto found = state.extra.find(key_fingerprint); found != state.extra.end())
    position.data_fingerprint = found->second;
  return position;
}

}  // namespace

std::filesystem::path save_training_state(ParallelJob& job, const TrainingPosition& position) {
  CheckpointState state;
  state.step = position.step;
  state.samples = position.step * job.sequences_per_step();
  state.seed = static_cast<uint64_t>(job.job().run.seed);
  state.extra = identity(job);
  state.extra[key_updates] = std::to_string(position.updates);
  state.extra[key_fingerprint] = position.data_fingerprint;
  std::vector<TensorSlice> slices;
  for (const NamedQuantity& named : quantities) append_slices(slices, job, named, ParallelModel::Replicas::once);
  return save_checkpoint(checkpoints_folder(job.job()), state, slices, job.axes().world());
}

std::optional<std::filesystem::path> checkpoint_to_resume(const Job& job) {
  const std::filesystem::path folder = checkpoints_folder(job);
  if (job.checkpoint.resume == "auto") return newest_checkpoint(folder);
  if (job.checkpoint.resume != "never") return std::filesystem::path(job.checkpoint.resume);
  if (!list_checkpoints(folder).empty())
    user_error(
        "checkpoint.resume is never, but {} holds checkpoints of an earlier run, which this one would mix with its "
        "own. Use another "
        "run.output_dir, or checkpoint.resume: auto to go on with that run.",
        folder.string());
  return std::nullopt;
}

TrainingPosition load_training_state(ParallelJob& job, const std::filesystem::path& checkpoint,
                                     const std::string& data_fingerprint) {
  CheckpointReader reader(checkpoint);
  for (const auto& [key, value] : identity(job)) {
    const auto found = reader.state().extra.find(key);
    if (found == reader.state().extra.end() || found->second == value) continue;
    user_error(
        "{} is {} now, but was {} in {}, which this run would go on from. Set it back, or use another run.output_dir.",
        key, value, found->second, checkpoint.string());
  }
  TrainingPosition position = position_of(reader.state());
  if (position.data_fingerprint != data_fingerprint)
    user_error(
        "data.train ({}) is not the data that {} was trained on: its fingerprint is {}, it was {}. Restore the data, "
        "or use another "
        "run.output_dir.",
        job.job().data.train.string(), checkpoint.string(), data_fingerprint, position.data_fingerprint);
  std::vector<TensorSlice> slices;
  for (const NamedQuantity& named : quantities) append_slices(slices, job, named, ParallelModel::Replicas::all);
  reader.load(slices);
  return position;
}

TrainingPosition load_parameters(ParallelJob& job, const std::filesystem::path& checkpoint) {
  CheckpointReader reader(checkpoint);
  std::vector<TensorSlice> slices;
  append_slices(slices, job, quantities[0], ParallelModel::Replicas::all);
  reader.load(slices);
  return position_of(reader.state());
}

}  // namespace conclave
