// conclave generate: texts that go on from prompts.
#include <fmt/core.h>
#include <fmt/ranges.h>

#include <chrono>
#include <iostream>
#include <memory>

#include "apps/command.h"
#include "apps/generated_output.h"
#include "apps/prompts.h"
#include "apps/speaking_model.h"
#include "base/error.h"
#include "base/log.h"
#include "base/seconds_since.h"

namespace conclave {
namespace {

struct Options {
  SpeakingOptions speaking;
  PromptOptions prompts;
  int64_t sequences = 16;
  int64_t alternatives = 0;
  bool json = false;
};

void add_options(CLI::App& command, Options& options) {
  options.speaking.add_to(command);
  options.prompts.add_to(command);
  command.add_option("--sequences", options.sequences, "texts that are made at a time, over all ranks")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--alternatives", options.alternatives,
                  "with --json: beside each token so many of the most likely ones, with their log probabilities")
      ->check(CLI::NonNegativeNumber);
  command.add_flag("--json", options.json, "print a line of JSON for each prompt");
  command.footer(
      "conclave generate runs/quickstart/training --tokenizer runs/quickstart/tokenizer --prompt \"def \"\n"
      "conclave generate model --ranks 2 --prompts questions.txt --temperature 0.7 --top-p 0.9 --json\n\n"
      "Without --temperature the model's generation_config.json says how tokens are chosen, else the most likely one "
      "is taken. A draw is a function of seed, prompt and position: neither ranks nor other prompts change a text.");
}

GenerationOptions options_for(const Options& options, const SpeakingSource& source, const ModelConfig& model,
                              const Prompts& prompts) {
  GenerationOptions generation = source.generation(model);
  generation.sequences = options.sequences;
  generation.alternatives = std::min(options.alternatives, model.vocab_size);
  fit_to_prompts(generation, model, prompts.tokens, options.speaking.max_new_tokens);
  return generation;
}

// What needs neither ranks nor Python to be refused.
void check_options(const Options& options, const SpeakingSource& source, const ModelConfig& model) {
  options.prompts.check();
  if (options.alternatives > 0 && !options.json) user_error("--alternatives is printed with --json alone. Add --json.");
  if (options.prompts.are_texts()) {
    source.tokenizer();
    source.generation(model);
    return;
  }
  if (!options.speaking.stop_words.empty())
    user_error("--stop is text, which --prompt-ids does without. Give --prompt, or leave --stop out.");
  options_for(options, source, model, token_prompts(options.prompts));
}

void run(ParallelJob& job, const Options& options, const SpeakingSource& source) {
  std::unique_ptr<TextProcess> text;  // of rank 0
  if (options.prompts.are_texts()) text = start_text_process(job, source.tokenizer(), options.speaking.stop_words);
  const Prompts prompts = read_prompts(options.prompts, text.get(), job.host_world());
  const GenerationOptions generation = options_for(options, source, job.model_config(), prompts);
  SpeakingModel model(job, source, generation.most_positions);
  GeneratedOutput output(prompts, options.json, text.get());
  const auto start = std::chrono::steady_clock::now();
  const std::vector<GeneratedText> texts = generate(
      model.cached(), job.host_world(), prompts.tokens, generation, [&](std::span<const GeneratedToken> tokens) {
        return job.is_first() ? output.take(tokens) : std::vector<int64_t>();
      });
  const double seconds = seconds_since(start);
  if (job.is_first()) output.finish(texts);
  size_t tokens = 0;
  for (const GeneratedText& generated : texts) tokens += generated.tokens.size();
  spdlog::info("{} tokens in {:.1f} s, {:.1f} tokens/s", tokens, seconds,
               static_cast<double>(tokens) / std::max(seconds, 1e-9));
}

}  // namespace

void add_generate(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "write texts that go on from prompts");
  add_options(*command, *options);
  command->callback([options, &exit_code] {
    std::unique_ptr<SpeakingSource> source;
    const auto make = [&](int world) {
      source = std::make_unique<SpeakingSource>(options->speaking);
      CheckedJob job = source->job_for(world);
      check_options(*options, *source, job.model);
      return job;
    };
    exit_code = run_on_ranks(options->speaking.ranks, make, [&](ParallelJob& job) { run(job, *options, *source); });
  });
}

}  // namespace conclave
