#include "apps/speaking_model.h"

#include "apps/ckpt.h"
#include "apps/command.h"
#include "base/error.h"
#include "base/log.h"
#include "base/shown_path.h"
#include "base/text_file.h"
#include "checkpoint/tokenizer_files.h"
#include "config/field_values.h"
#include "config/job_file.h"
#include "families/adapter_folder.h"
#include "families/family.h"
#include "run/adapter_shape.h"
#include "run/checkpoint_values.h"
#include "run/job_and_model.h"
#include "run/model_source.h"
#include "run/run_folder.h"
#include "run/stored_adapter.h"

namespace conclave {
namespace {

bool has_tokenizer(const std::filesystem::path& folder) {
  if (!is_folder(folder)) return false;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("tokenizer") && is_tokenizer_file(name)) return true;
  }
  return false;
}

std::optional<std::filesystem::path> checkpoint_in(const std::filesystem::path& source) {
  if (!is_folder(source)) user_error("there is no folder {}.", shown_path(source));
  const bool is_checkpoint = has_name(source / manifest_file_name);
  if (!is_checkpoint && (has_name(source / "config.json") || has_name(source / adapter_config_file_name)))
    return std::nullopt;
  if (!is_checkpoint && !has_name(source / "job.yaml") && !has_name(source / "checkpoints"))
    user_error(
        "{} is no model: it has neither a config.json (a Hugging Face folder), nor an {} (an adapter), nor a {} (a "
        "checkpoint), nor checkpoints (a run's folder).",
        shown_path(source), adapter_config_file_name, manifest_file_name);
  return checkpoint_of(source);
}

// The first of the folders that has one.
std::optional<std::filesystem::path> first_with_tokenizer(const std::vector<std::filesystem::path>& folders) {
  for (const std::filesystem::path& folder : folders)
    if (has_tokenizer(folder)) return folder;
  return std::nullopt;
}

}  // namespace

void SpeakingOptions::add_to(CLI::App& command) {
  command
      .add_option("source", source,
                  "the model: a Hugging Face folder, an adapter's of PEFT, a checkpoint's, or a run's (its newest one)")
      ->required();
  command.add_option(
      "--tokenizer", tokenizer,
      "the folder of the tokenizer (default: the model's, or that of the model which the run began with)");
  command
      .add_option("--max-new-tokens", max_new_tokens,
                  "the longest text (default: 128 tokens, in a chat 1024, or up to the model's end)")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--temperature", temperature,
                  "0 takes the most likely token; above it tokens are drawn, the rarer ones the more often the higher "
                  "it is")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--top-k", top_k, "draw only of so many of the most likely tokens; 0: of all")
      ->check(CLI::NonNegativeNumber);
  command.add_option("--top-p", top_p, "draw only of the most likely tokens that have this probability together")
      ->check(CLI::Range(0.0, 1.0));
  command
      .add_option("--repetition-penalty", repetition_penalty,
                  "above 1 tokens that are there already become less likely")
      ->check(CLI::PositiveNumber);
  command.add_option("--seed", seed, "of the draws: the same seed gives the same texts")->capture_default_str();
  command.add_option("--stop", stop_words, "a text that ends what is written, and is no part of it; may be repeated")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command.add_flag("--ignore-end", ignores_end, "go on behind a token that ends a text");
  command.add_option("--set", overrides, "a key of a job: section.key=value, such as precision.compute=fp32")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add_ranks_option(command, ranks);
}

SpeakingSource::SpeakingSource(const SpeakingOptions& options)
    : options_(options), checkpoint_(checkpoint_in(options.source)) {
  std::vector<std::filesystem::path> folders = {options.source};
  if (checkpoint_) {
    const CheckpointReader reader(*checkpoint_);
    const CheckpointValues& values = reader.state().values;
    has_selection_bias_ = values.contains("selection_bias");
    const ModelSource began = source_of_run(reader.state());
    for (const auto& folder : {began.init_from, began.upcycle_from})
      if (folder) folders.push_back(*folder);
    is_adapter_ = adapter_of_run(reader.state()).exists();
    if (is_adapter_) base_ = began.init_from.value_or("");
  } else {
    is_adapter_ = !has_name(options.source / "config.json");
    base_ = is_adapter_ ? std::filesystem::path(base_of_adapter(options.source)) : options.source;
    if (is_adapter_) folders.push_back(*base_);
  }
  if (is_adapter_ && !has_name(*base_ / "config.json"))
    user_error("{} is an adapter, and the model that it lies beside is no Hugging Face folder here: {}.",
               shown_path(options.source), base_->empty() ? "it names none" : shown_path(*base_));
  for (const std::filesystem::path& folder : folders)
    if (!generation_config_) generation_config_ = read_generation_config(folder);
  if (options.tokenizer.empty())
    tokenizer_ = first_with_tokenizer(folders);
  else if (!has_tokenizer(options.tokenizer))
    user_error("--tokenizer is {}, which holds no tokenizer (tokenizer.json).", shown_path(options.tokenizer));
  else
    tokenizer_ = options.tokenizer;
}

const std::filesystem::path& SpeakingSource::tokenizer() const {
  if (!tokenizer_)
    user_error("{} has no tokenizer, which text needs. Give its folder with --tokenizer.", shown_path(options_.source));
  return *tokenizer_;
}

CheckedJob SpeakingSource::job_for(int world) const {
  std::vector<std::string> overrides = {
      "data.sequence_length=1", "moe.overload=none", "moe.dispatch_chunks=1",
      "model.config=" + print_value(base_.value_or(checkpoint_.value_or(options_.source)))};
  if (has_selection_bias_) overrides.emplace_back("moe.moe_load_balancing=bias");
  overrides.insert(overrides.end(), options_.overrides.begin(), options_.overrides.end());
  Job job = job_from_overrides(overrides);
  const ModelConfig model = base_ ? read_model_config(*base_) : model_of(CheckpointReader(*checkpoint_));
  if (is_adapter_) {
    job.model.init_from = *base_;
    job.adapter = checkpoint_ ? adapter_of_run(CheckpointReader(*checkpoint_).state())
                              : read_adapter_config(options_.source, model);
    job.adapter.init_from.reset();
    if (!checkpoint_) job.adapter.init_from = options_.source;
  }
  if (job.origins.of("parallel.expert_parallel_degree").empty() && model.experts() > 0) {
    ParallelConfig most = job.parallel;
    most.expert_parallel_degree = world;
    job.parallel.expert_parallel_degree = fitting_degrees(most, world, model.experts()).expert_parallel_degree;
  }
  return base_ ? check_job_and_model(std::move(job), world) : check_job(std::move(job), model, world);
}

GenerationOptions SpeakingSource::generation(const ModelConfig& model) const {
  const GenerationConfig config = generation_config_.value_or(GenerationConfig());
  GenerationOptions options;
  Sampling& sampling = options.sampling;
  sampling.temperature = options_.temperature.value_or(config.do_sample ? config.temperature : 0);
  sampling.top_k = options_.top_k.value_or(config.do_sample ? config.top_k : 0);
  sampling.top_p = options_.top_p.value_or(config.do_sample ? config.top_p : 1);
  sampling.repetition_penalty = options_.repetition_penalty.value_or(config.repetition_penalty);
  if (!sampling.draws() && (options_.top_k || options_.top_p))
    user_error("--top-k and --top-p narrow what is drawn, but nothing is: the temperature is 0. Give --temperature 1.");
  for (const std::string& word : options_.stop_words)
    if (word.empty()) user_error("--stop is empty, which every text contains. Give the text that ends another.");
  options.seed = options_.seed;
  if (!options_.ignores_end) options.end_tokens = config.eos_token_ids.value_or(model.eos_token_ids);
  options.listener_ends_texts = !options_.stop_words.empty();
  return options;
}

SpeakingModel::SpeakingModel(ParallelJob& job, const SpeakingSource& source, int64_t most_positions) {
  job.model().allocate_parameters();
  CheckpointValues values;
  if (source.checkpoint_) {
    values = load_parameters(job, *source.checkpoint_);
  } else {
    load_hugging_face(job, *source.base_);
    start_adapter(job);
  }
  engine_ = std::make_unique<ForwardBackward>(job.model(), job.settings());
  engine_->take_parameters();
  restore(engine_->selection(), values);
  cached_ = std::make_unique<CachedModel>(job.model(), job.settings(), engine_->selection(),
                                          WeightsBetweenPasses::gathered, most_positions);
}

void fit_to_prompts(GenerationOptions& options, const ModelConfig& model,
                    const std::vector<std::vector<int64_t>>& prompts, const std::optional<int64_t>& max_new_tokens,
                    int64_t usual) {
  int64_t longest = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    const std::vector<int64_t>& prompt = prompts[i];
    if (prompt.empty())
      user_error("prompt {} has no tokens. Give it one at least, such as the one that begins a text.", i + 1);
    for (const int64_t token : prompt)
      if (token < 0 || token >= model.vocab_size)
        user_error("prompt {} has the token {}, but the model's tokens are 0 to {}.", i + 1, token,
                   model.vocab_size - 1);
    longest = std::max(longest, static_cast<int64_t>(prompt.size()));
    const int64_t room = model.max_position_embeddings - static_cast<int64_t>(prompt.size());
    if (room < max_new_tokens.value_or(1))
      user_error("prompt {} has {} tokens{}, but the model ends at max_position_embeddings {}.", i + 1, prompt.size(),
                 max_new_tokens ? fmt::format(", and --max-new-tokens is {}", *max_new_tokens) : "",
                 model.max_position_embeddings);
  }
  options.max_new_tokens = max_new_tokens.value_or(usual);
  options.most_positions = std::min(model.max_position_embeddings, longest + options.max_new_tokens);
}

}  // namespace conclave
