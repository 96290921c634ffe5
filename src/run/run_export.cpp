#include "run/run_export.h"

#include <map>

#include "base/error.h"
#include "base/log.h"
#include "base/text_file.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_state.h"
#include "checkpoint/hugging_face_files.h"
#include "checkpoint/together.h"
#include "families/adapter_folder.h"
#include "families/family.h"
#include "run/export_options.h"
#include "run/whole_parameter.h"

namespace conclave {
namespace {

void remove_older(const std::filesystem::path& folder, int64_t keep) {
  std::vector<std::filesystem::path> exports = list_checkpoints(folder);  // named alike
  while (static_cast<int64_t>(exports.size()) > keep) {
    remove_checkpoint(exports.front());
    exports.erase(exports.begin());
  }
}

void write_export(ParallelJob& job, const std::filesystem::path& folder, const HuggingFaceExportOptions& options) {
  const std::vector<DiskNames> names = disk_names(job.model_config());
  HuggingFaceExport out(folder, names, options, job.host_world());
  for (const TensorSlice& slice : job.model().slices(kind_parameter, ParallelModel::Replicas::shared)) out.write(slice);
  out.finish();
}

// An adapter is small: all ranks gather it, and the first one writes.
void write_adapter_export(ParallelJob& job, const std::filesystem::path& folder) {
  const std::vector<TensorSlice> slices =
      job.model().slices(kind_parameter, ParallelModel::Replicas::once, ParallelModel::Which::kept);
  std::map<std::string, at::Tensor> whole;
  for (const AdapterTensor& tensor : adapter_tensors(job.model_config()))
    whole[tensor.parameter] = whole_parameter(job, slices, tensor.parameter, tensor.shape);
  together(job.host_world(), [&] {
    if (!job.is_first()) return;
    write_adapter(OutputFolder(folder, Overwrite::replace, is_adapter_file), job.model_config(), job.job().adapter,
                  job.job().model.init_from.value_or("").string(),
                  [&](const AdapterTensor& tensor) { return whole.at(tensor.parameter); });
  });
}

}  // namespace

std::optional<std::string> take_along(HuggingFaceExportOptions& options, const ModelSource& source,
                                      const std::optional<std::filesystem::path>& tokenizer) {
  std::optional<std::filesystem::path> model = source.init_from ? source.init_from : source.upcycle_from;
  std::optional<std::string> lost;
  if (model && !is_folder(*model)) {
    if (!tokenizer)
      lost = fmt::format("{}, which the run started from, is gone: no tokenizer goes along", model->string());
    model.reset();
  }
  options.tokenizer_folder = tokenizer ? tokenizer : model;
  for (const auto& folder : {tokenizer, model})  // the model's own goes before
    if (folder && has_name(*folder / generation_config_file_name))
      options.generation_config_file = *folder / generation_config_file_name;
  return lost;
}

void export_run(ParallelJob& job, int64_t step) {
  const Job& settings = job.job();
  HuggingFaceExportOptions options = hugging_face_export_options(job.model_config(), at::kFloat);
  if (const auto lost = take_along(options, settings.model); lost && job.is_first()) spdlog::warn("{}", *lost);
  options.overwrite = Overwrite::replace;
  const std::filesystem::path folder = exports_folder(settings) / checkpoint_name(step);
  try {
    job.model_config().adapter ? write_adapter_export(job, folder) : write_export(job, folder, options);
    if (job.is_first() && settings.checkpoint.export_keep > 0)
      remove_older(exports_folder(settings), settings.checkpoint.export_keep);
    spdlog::info("step {}: exported {}", step, folder.string());
  } catch (const PeerLostError&) {
    throw;
  } catch (const InvariantError&) {
    throw;
  } catch (const std::exception& error) {  // the same kind on all ranks
    if (job.is_first()) spdlog::warn("step {} was not exported: {}. Training goes on.", step, error.what());
  }
}

}  // namespace conclave
