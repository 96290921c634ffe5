// conclave ckpt merge: an adapter folded into its model.
#include <memory>

#include "apps/ckpt.h"
#include "apps/command_line.h"
#include "base/error.h"
#include "base/text_file.h"
#include "checkpoint/checkpoint_rewrite.h"
#include "checkpoint/hugging_face_files.h"
#include "checkpoint/hugging_face_reader.h"
#include "families/family.h"
#include "run/adapter_merge.h"
#include "run/export_options.h"
#include "run/run_export.h"
#include "run/run_folder.h"

namespace conclave {
namespace {

struct MergeOptions {
  std::filesystem::path adapter;
  std::filesystem::path base;
  std::string dtype = "base";
  std::string tokenizer;
  OutputOptions output;
};

bool is_checkpoint(const std::filesystem::path& folder) {
  return has_name(folder / manifest_file_name);
}

// The model beside which the adapter was trained, as the adapter says.
std::filesystem::path base_of(const std::filesystem::path& adapter) {
  std::filesystem::path base;
  if (is_checkpoint(adapter))
    base = source_of_run(CheckpointReader(adapter).state()).init_from.value_or("");
  else
    base = base_of_adapter(adapter);
  if (is_folder(base)) return base;
  user_error("{} says that its model is {}, and there is no such folder here. Give it by --base.", adapter.string(),
             base.empty() ? "nowhere" : base.string());
}

at::ScalarType dtype_of(const MergeOptions& options, const std::filesystem::path& base) {
  if (options.dtype == "bf16") return at::kBFloat16;
  if (options.dtype == "fp16") return at::kHalf;
  if (options.dtype == "fp32" || is_checkpoint(base)) return at::kFloat;
  const std::vector<HuggingFaceFiles::Place> tensors = HuggingFaceFiles(base).all();
  const StoredDtype stored = tensors.empty() ? StoredDtype::F32 : tensors.front().tensor->dtype;
  return stored == StoredDtype::BF16 ? at::kBFloat16 : stored == StoredDtype::F16 ? at::kHalf : at::kFloat;
}

void merge(const MergeOptions& options) {
  const std::filesystem::path adapter_path =
      has_name(options.adapter / adapter_config_file_name) ? options.adapter : checkpoint_of(options.adapter);
  std::filesystem::path base = options.base.empty() ? base_of(adapter_path) : options.base;
  if (!has_name(base / "config.json")) base = checkpoint_of(base);
  std::unique_ptr<CheckpointReader> checkpoint;
  if (is_checkpoint(base)) checkpoint = std::make_unique<CheckpointReader>(base);
  const ModelConfig model = checkpoint ? model_of(*checkpoint) : read_model_config(base);
  StoredAdapter adapter(adapter_path, model);
  const std::vector<DiskNames> names = disk_names(model);
  std::optional<HuggingFaceReader> folder;
  if (!checkpoint) folder.emplace(base, names, left_out_weights(model));
  const auto read = [&](const TensorSlice& slice) {
    if (folder) return folder->load(slice);
    const TensorSlice stored{state_tensor_name(kind_parameter, slice.name), slice.shape, slice.begin, slice.data};
    checkpoint->load({&stored, 1});
  };

  HuggingFaceExportOptions target = hugging_face_export_options(model, dtype_of(options, base));
  ModelSource source;
  if (!checkpoint) source.init_from = base;
  const std::optional<std::filesystem::path> tokenizer =
      options.tokenizer.empty() ? std::nullopt : std::optional<std::filesystem::path>(options.tokenizer);
  if (const auto lost = take_along(target, source, tokenizer)) fmt::print(stderr, "warning: {}\n", *lost);
  target.overwrite = options.output.when_there();
  options.output.write("merge", bytes_of_export(names, target.dtype), [&](const BytesDone& done) {
    merge_adapter(adapter, read, options.output.output, target, done);
  });
}

}  // namespace

void add_ckpt_merge(CLI::App& ckpt) {
  auto options = std::make_shared<MergeOptions>();
  CLI::App* command =
      ckpt.add_subcommand("merge", "fold an adapter into its model: a Hugging Face folder that needs no adapter");
  command
      ->add_option("adapter", options->adapter,
                   "an adapter's folder as PEFT has it, or a checkpoint of a run that trained one, or the run's folder")
      ->required();
  add_output_options(*command, options->output, "output", "the Hugging Face folder to write");
  command->add_option("--base", options->base,
                      "the model: a Hugging Face folder or a checkpoint; without it the one that the adapter names");
  command->add_option("--dtype", options->dtype, "of the weights on disk; base: as the model has them")
      ->check(CLI::IsMember({"base", "fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_option("--tokenizer", options->tokenizer,
                      "a folder whose tokenizer and chat templates are copied along; without it those of the model");
  command->callback([options] { merge(*options); });
}

}  // namespace conclave
