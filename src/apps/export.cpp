// conclave export: a checkpoint of a run as a Hugging Face folder.
#include <memory>

#include "apps/command.h"
#include "apps/parameter_source.h"
#include "base/log.h"

namespace conclave {

void add_export(CLI::App& app, int& exit_code) {
  struct Options {
    JobOptions job;
    ParameterSource source;
    std::string output;
    std::string tokenizer;
    std::string dtype = "fp32";
    int ranks = 1;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("export", "write a checkpoint as a Hugging Face folder that Transformers loads");
  add_job_options(*command, options->job);
  add_source_options(*command, options->source);
  command->add_option("--output", options->output, "the folder to write (default: export in run.output_dir)");
  command->add_option("--tokenizer", options->tokenizer, "a folder whose tokenizer files are copied along");
  command->add_option("--dtype", options->dtype, "of the weights on disk")->check(CLI::IsMember({"fp32", "bf16"}));
  add_ranks_option(*command, options->ranks);
  command->callback([options, &exit_code] {
    const auto read = [options] { return read_job(options->job.file, options->job.overrides); };
    exit_code = run_on_ranks(options->ranks, read, [options](ParallelJob& job) {
      load_from(job, options->source);
      const std::filesystem::path folder =
          options->output.empty() ? job.job().run.output_dir / "export" : std::filesystem::path(options->output);
      std::optional<std::filesystem::path> tokenizer;
      if (!options->tokenizer.empty()) tokenizer = options->tokenizer;
      job.model().save_hugging_face(folder, options->dtype == "bf16" ? at::kBFloat16 : at::kFloat, tokenizer);
      spdlog::info("wrote {}; no rank held more than {:.1f} MiB", folder.string(), job.most_resident_mebibytes());
    });
  });
}

}  // namespace conclave
