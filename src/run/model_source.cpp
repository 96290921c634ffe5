#include "run/model_source.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_state.h"
#include "checkpoint/hugging_face_reader.h"
#include "checkpoint/tokenizer_files.h"
#include "config/job_difference.h"
#include "families/adapter_folder.h"
#include "families/family.h"
#include "families/parameter_names.h"
#include "families/source_config.h"
#include "run/resized_vocabulary.h"
#include "run/run_folder.h"
#include "run/upcycle.h"

namespace conclave {
namespace {

ModelConfig with_vocabulary(ModelConfig config, int64_t size) {
  config.vocab_size = size;
  return config;
}

// The folder of the weights; null: they are drawn.
const std::filesystem::path* folder_of(const ModelSource& source) {
  if (source.init_from) return &*source.init_from;
  return source.upcycle_from ? &*source.upcycle_from : nullptr;
}

bool goes_on_from_a_checkpoint(const Job& job) {
  if (job.checkpoint.resume == "never") return false;
  return job.checkpoint.resume != "auto" || !list_checkpoints(checkpoints_folder(job)).empty();
}

void check_tokenizer(const std::filesystem::path& folder, int64_t vocabulary) {
  const std::optional<int64_t> ids = tokenizer_ids(folder);
  if (!ids || *ids <= vocabulary) return;
  user_error(
      "the tokenizer in {} has {} ids, but the model has embeddings for {}.\n       Set model.resize_vocabulary to {}, "
      "so that every id has one.",
      folder.string(), *ids, vocabulary, *ids);
}

// As adapter.<key> of the job should be.
void check_same(const Job& job, const AdapterConfig& stored) {
  const std::filesystem::path& folder = *job.adapter.init_from;
  Job other = job;
  other.adapter = stored;
  other.adapter.init_from = job.adapter.init_from;
  const auto said = values_of(job), has = values_of(other);
  std::vector<std::string> mistakes;
  for (const char* key : {"adapter.rank", "adapter.alpha", "adapter.use_rslora", "adapter.dropout", "adapter.experts",
                          "adapter.router", "adapter.targets"})
    if (said.at(key) != has.at(key))
      mistakes.push_back(mistake(fmt::format("{} is {}, but the adapter in {} (adapter.init_from) has {}.", key,
                                             said.at(key), folder.string(), has.at(key)),
                                 fmt::format("Set {} to {}.", key, has.at(key)), job.origins.of(key)));
  refuse_if_any(mistakes);
}

// With no default left open, and names of modules in one order.
Job with_plain_adapter(Job job, const ModelConfig& model) {
  AdapterConfig& adapter = job.adapter;
  adapter.alpha = adapter.alpha.value_or(2.0 * static_cast<double>(adapter.rank));
  adapter.experts = model.adapter->experts;
  adapter.targets = {};
  for (const AdaptableModule& module : adaptable_modules(model))
    if (model.adapter->targets.contains(module.target)) adapter.targets.names.push_back(module.module);
  std::sort(adapter.targets.names.begin(), adapter.targets.names.end());
  return job;
}

void check_adapter_source(const CheckedJob& job) {
  const std::optional<std::filesystem::path>& folder = job.job.adapter.init_from;
  if (!folder || goes_on_from_a_checkpoint(job.job)) return;
  AdapterConfig stored = read_adapter_config(*folder, job.model);
  stored.dropout = job.job.adapter.dropout;  // training goes on with another as well
  check_same(with_plain_adapter(job.job, job.model), stored);
  const AdapterReader reader(*folder, job.model);
}

}  // namespace

void check_model_source(const CheckedJob& job) {
  const ModelSource& source = job.job.model;
  const std::filesystem::path* folder = folder_of(source);
  check_adapter_source(job);
  // The checkpoints of an adapter do not hold the model that it lies beside.
  if (folder == nullptr || (goes_on_from_a_checkpoint(job.job) && !job.job.adapter.exists())) return;
  const ModelConfig stored = with_vocabulary(job.model, check_source_config(source, job.model));
  const std::vector<DiskNames> names = disk_names(source.init_from ? stored : read_model_config(*folder));
  const HuggingFaceReader reader(*folder, names, left_out_weights(stored));
  check_tokenizer(*folder, job.model.vocab_size);
}

void load_hugging_face(ParallelJob& job, const std::filesystem::path& folder) {
  ModelSource source = job.job().model;
  source.init_from = folder;
  source.upcycle_from.reset();
  const int64_t vocabulary = check_source_config(source, job.model_config());
  const std::vector<DiskNames> names = disk_names(with_vocabulary(job.model_config(), vocabulary));
  const HuggingFaceReader reader(folder, names, left_out_weights(job.model_config()));
  for (const TensorSlice& slice :
       job.model().slices(kind_parameter, ParallelModel::Replicas::all, ParallelModel::Which::of_model))
    load_slice(reader, slice, vocabulary, static_cast<uint64_t>(job.job().run.seed));
}

void start_adapter(ParallelJob& job) {
  const AdapterConfig& adapter = job.job().adapter;
  if (!adapter.exists()) return;
  job.model().initialize_adapters(static_cast<uint64_t>(job.job().run.seed));
  if (!adapter.init_from) return;
  const AdapterReader reader(*adapter.init_from, job.model_config());
  const std::vector<TensorSlice> slices =
      job.model().slices(kind_parameter, ParallelModel::Replicas::all, ParallelModel::Which::kept);
  for (const AdapterTensor& tensor : reader.tensors()) {
    const at::Tensor whole = reader.read(tensor).view({-1});
    for (const TensorSlice& slice : slices)
      if (slice.name == tensor.parameter) slice.data.copy_(whole.narrow(0, slice.begin, slice.data.numel()));
  }
  spdlog::info("starting from the adapter in {}", adapter.init_from->string());
}

void start_base(ParallelJob& job) {
  if (const auto& folder = job.job().model.init_from)
    load_hugging_face(job, *folder);
  else
    job.model().initialize(static_cast<uint64_t>(job.job().run.seed));
}

void start_parameters(ParallelJob& job) {
  const ModelSource& source = job.job().model;
  const auto seed = static_cast<uint64_t>(job.job().run.seed);
  if (const std::filesystem::path* folder = folder_of(source)) check_tokenizer(*folder, job.model_config().vocab_size);
  if (source.init_from) {
    load_hugging_face(job, *source.init_from);
    spdlog::info("starting from the parameters of {}", source.init_from->string());
  } else if (source.upcycle_from) {
    upcycle(job.model(), source, seed, job.host_world());
    spdlog::info("starting from the dense model in {}: each of {} experts a copy of its layer's MLP",
                 source.upcycle_from->string(), job.model_config().experts());
  } else {
    job.model().initialize(seed);
  }
  start_adapter(job);
}

}  // namespace conclave
