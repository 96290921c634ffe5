// conclave ckpt export and import: between checkpoints and Hugging Face folders.
#include <fmt/core.h>

#include <memory>

#include "apps/ckpt.h"
#include "apps/command_line.h"
#include "base/error.h"
#include "checkpoint/checkpoint_rewrite.h"
#include "families/family.h"
#include "optim/adamw.h"
#include "run/checkpoint_values.h"
#include "run/export_options.h"
#include "run/run_export.h"
#include "run/run_folder.h"
#include "run/stored_adapter.h"

namespace conclave {
namespace {

// The checkpoint holds no more than the adapter.
void export_adapter(const CheckpointReader& from, const ModelConfig& model, const OutputOptions& output) {
  StoredAdapter adapter(from.path(), model);
  uint64_t bytes = 0;
  for (const AdapterTensor& tensor : adapter.tensors())
    bytes += static_cast<uint64_t>(checked_numel(tensor.shape).value()) * sizeof(float);
  output.write("export", bytes, [&](const BytesDone& done) {
    write_adapter(OutputFolder(output.output, output.when_there(), is_adapter_file), adapter.model(), adapter.config(),
                  source_of_run(from.state()).init_from.value_or("").string(), [&](const AdapterTensor& tensor) {
                    done(static_cast<uint64_t>(checked_numel(tensor.shape).value()) * sizeof(float));
                    return adapter.read(tensor);
                  });
  });
}

}  // namespace

void add_ckpt_export(CLI::App& ckpt) {
  struct Options {
    std::filesystem::path checkpoint;
    std::string dtype = "fp32";
    uint64_t max_shard_bytes = 5'000'000'000;
    std::string tokenizer;
    OutputOptions output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      ckpt.add_subcommand("export",
                          "write a checkpoint's parameters as a Hugging Face folder that Transformers loads; of a run "
                          "with an adapter, the adapter as a folder that PEFT loads");
  command->add_option("checkpoint", options->checkpoint, "a checkpoint's folder, or a run's")->required();
  add_output_options(*command, options->output, "output", "the Hugging Face folder to write");
  command->add_option("--dtype", options->dtype, "of the weights on disk: rounded to nearest")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command
      ->add_option("--max-shard-size", options->max_shard_bytes,
                   "the most data in a file, for example 500MB; a larger tensor has a file to itself")
      ->transform(CLI::AsSizeValue(true))
      ->check(above_zero())
      ->default_str("5GB");
  command->add_option(
      "--tokenizer", options->tokenizer,
      "a folder whose tokenizer and chat templates are copied along; without it those of the folder that the run "
      "started from (model.init_from, model.upcycle_from)");
  command->callback([options] {
    CheckpointReader from(checkpoint_of(options->checkpoint));
    if (const auto lost = lost_in_export(from.state().values)) fmt::print(stderr, "warning: {}\n", *lost);
    const ModelConfig model = model_of(from);
    if (adapter_of_run(from.state()).exists()) {
      if (options->dtype != "fp32" || !options->tokenizer.empty())
        user_error(
            "{} holds an adapter, which is written in fp32 and without a tokenizer. Leave out --dtype and --tokenizer.",
            from.path().string());
      return export_adapter(from, model, options->output);
    }
    const std::vector<DiskNames> names = disk_names(model);
    const at::ScalarType dtype = options->dtype == "bf16"   ? at::kBFloat16
                                 : options->dtype == "fp16" ? at::kHalf
                                                            : at::kFloat;
    HuggingFaceExportOptions target = hugging_face_export_options(model, dtype);
    target.max_shard_bytes = options->max_shard_bytes;
    const std::optional<std::filesystem::path> tokenizer =
        options->tokenizer.empty() ? std::nullopt : std::optional<std::filesystem::path>(options->tokenizer);
    if (const auto lost = take_along(target, source_of_run(from.state()), tokenizer))
      fmt::print(stderr, "warning: {}. --tokenizer FOLDER gives one.\n", *lost);
    target.overwrite = options->output.when_there();
    const uint64_t bytes = bytes_of_export(names, dtype);
    options->output.write("export", bytes, [&](const BytesDone& done) {
      export_checkpoint(from, names, options->output.output, target, done);
    });
  });
}

void add_ckpt_import(CLI::App& ckpt) {
  struct Options {
    std::filesystem::path hugging_face;
    OutputOptions output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      ckpt.add_subcommand("import", "write a Hugging Face folder as a checkpoint at step 0, with moments of zero");
  command->add_option("folder", options->hugging_face, "a Hugging Face folder: config.json and safetensors files")
      ->required();
  add_output_options(*command, options->output, "output",
                     "the checkpoint's folder to write; as RUN/checkpoints/step-00000000 a run begins with it");
  command->footer(
      "Any float type, and the names of Transformers 4 and 5. A run does not need this: model.init_from reads the "
      "folder itself, each rank its part. It makes checkpoints of models from elsewhere, to compare or to average.");
  command->callback([options] {
    const ModelConfig model = read_model_config(options->hugging_face);
    const std::vector<DiskNames> names = disk_names(model);
    const std::vector<std::string> moments = AdamW(OptimizerConfig()).state();
    const uint64_t bytes = bytes_of_import(names, moments);
    options->output.write("import", bytes, [&](const BytesDone& done) {
      import_hugging_face(options->hugging_face, names, moments, state_of_imported(model), options->output.output,
                          options->output.when_there(), done);
    });
  });
}

}  // namespace conclave
