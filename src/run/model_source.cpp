#include "run/model_source.h"

#include <fmt/format.h>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_state.h"
#include "checkpoint/hugging_face_reader.h"
#include "checkpoint/tokenizer_files.h"
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

}  // namespace

void check_model_source(const CheckedJob& job) {
  const ModelSource& source = job.job.model;
  const std::filesystem::path* folder = folder_of(source);
  if (folder == nullptr || goes_on_from_a_checkpoint(job.job)) return;
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
  for (const TensorSlice& slice : job.model().slices(kind_parameter, ParallelModel::Replicas::all))
    load_slice(reader, slice, vocabulary, static_cast<uint64_t>(job.job().run.seed));
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
}

}  // namespace conclave
