// What `conclave generate` and `conclave chat` speak with: a run, a checkpoint, a Hugging Face folder or an adapter of
// PEFT, laid over the ranks, and how its tokens are chosen.
#pragma once

#include <CLI/CLI.hpp>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "families/generation_config.h"
#include "generate/generation.h"
#include "mesh/checked_job.h"
#include "step/forward_backward.h"
#include "step/parallel_job.h"

namespace conclave {

// The options of both commands. Of a number that is not given the model's generation_config.json counts.
struct SpeakingOptions {
  std::filesystem::path source;
  std::filesystem::path tokenizer;
  std::vector<std::string> overrides;
  int ranks = 1;
  std::optional<double> temperature, top_p, repetition_penalty;
  std::optional<int64_t> top_k, max_new_tokens;
  uint64_t seed = 0;
  std::vector<std::string> stop_words;
  bool ignores_end = false;

  void add_to(CLI::App& command);
};

// What the options name, found on the disk. UserError when it is nothing of the kind.
class SpeakingSource {
 public:
  explicit SpeakingSource(const SpeakingOptions& options);

  // The folder of the tokenizer; UserError that names the remedy when there is none.
  const std::filesystem::path& tokenizer() const;
  // Experts are divided over as many ranks as can have equal parts, unless the options say otherwise.
  CheckedJob job_for(int world) const;
  // But for what depends on prompts. `model`: of the same source.
  GenerationOptions generation(const ModelConfig& model) const;

 private:
  friend class SpeakingModel;
  SpeakingOptions options_;
  std::optional<std::filesystem::path> checkpoint_;  // none: the source is a Hugging Face folder, or one of PEFT
  std::optional<std::filesystem::path> base_;        // the Hugging Face folder whose weights are read
  bool is_adapter_ = false;                          // the source is an adapter, which lies beside these weights
  std::optional<std::filesystem::path> tokenizer_;
  std::optional<GenerationConfig> generation_config_;
  bool has_selection_bias_ = false;  // which a balancing rule has added
};

// The weights, gathered. Collective.
class SpeakingModel {
 public:
  SpeakingModel(ParallelJob& job, const SpeakingSource& source, int64_t most_positions);
  CachedModel& cached() { return *cached_; }

 private:
  std::unique_ptr<ForwardBackward> engine_;  // whose selection of experts counts
  std::unique_ptr<CachedModel> cached_;
};

// What can be wrong with prompts: their tokens, and their lengths together with what is to follow. Fills in
// max_new_tokens and most_positions. `usual`: new tokens where the user does not say how many.
void fit_to_prompts(GenerationOptions& options, const ModelConfig& model,
                    const std::vector<std::vector<int64_t>>& prompts, const std::optional<int64_t>& max_new_tokens,
                    int64_t usual = 128);

}  // namespace conclave
