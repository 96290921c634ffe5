#include "run/training_samples.h"

#include <ATen/ATen.h>
#include <fmt/core.h>

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "base/printable.h"
#include "checkpoint/together.h"

namespace conclave {
namespace {

// Rank 0's numbers, on all ranks.
std::vector<int64_t> broadcast_numbers(Communicator& ranks, std::vector<int64_t> numbers) {
  const at::Tensor count = at::full({1}, static_cast<int64_t>(numbers.size()), at::kLong);
  ranks.broadcast(count, 0).wait();
  numbers.resize(static_cast<size_t>(count.item<int64_t>()));
  const at::Tensor all = at::empty({count.item<int64_t>()}, at::kLong);
  std::copy(numbers.begin(), numbers.end(), all.data_ptr<int64_t>());
  if (!numbers.empty()) ranks.broadcast(all, 0).wait();
  return {all.const_data_ptr<int64_t>(), all.const_data_ptr<int64_t>() + all.numel()};
}

}  // namespace

TrainingSamples::TrainingSamples(ParallelJob& job, ExpertSelection& selection, std::unique_ptr<TextCoder> coder)
    : job_(job), selection_(selection), coder_(std::move(coder)) {
  const ValidationConfig& validation = job.job().validation;
  const ModelConfig& model = job.model_config();
  prompts_.resize(validation.prompts->texts.size());
  options_.sampling.temperature = validation.temperature;
  options_.seed = static_cast<uint64_t>(job.job().run.seed);
  options_.max_new_tokens = validation.prompt_tokens;
  options_.end_tokens = model.eos_token_ids;
  options_.tokens_of_pass = std::max<int64_t>(job.checked().tokens_per_rank(), 1);  // as much as a step has room for
  together(job.host_world(), [&] {
    if (!coder_) return;
    prompts_ = coder_->encode(validation.prompts->texts);
    for (const std::vector<int64_t>& prompt : prompts_) {
      const auto length = static_cast<int64_t>(prompt.size());
      if (prompt.empty() || length >= model.max_position_embeddings)
        user_error("validation.prompts: a prompt has {} tokens, but the model takes 1 to {}.", length,
                   model.max_position_embeddings - 1);
      if (*std::max_element(prompt.begin(), prompt.end()) >= model.vocab_size)
        user_error(
            "validation.prompts: the tokenizer gives the token {}, but the model's vocab_size is {}. Set "
            "validation.tokenizer to the tokenizer of the training data.",
            *std::max_element(prompt.begin(), prompt.end()), model.vocab_size);
    }
  });
  int64_t longest = 0;
  for (std::vector<int64_t>& prompt : prompts_) {
    prompt = broadcast_numbers(job.host_world(), prompt);
    longest = std::max(longest, static_cast<int64_t>(prompt.size()));
  }
  options_.most_positions = std::min(model.max_position_embeddings, longest + options_.max_new_tokens);
}

std::vector<std::string> TrainingSamples::write(int64_t step) {
  CachedModel model(job_.model(), job_.settings(), selection_, WeightsBetweenPasses::sharded, options_.most_positions);
  const std::vector<GeneratedText> generated =
      generate(model, job_.host_world(), prompts_, options_,
               [](std::span<const GeneratedToken>) { return std::vector<int64_t>(); });
  if (!coder_) return {};
  try {
    std::vector<std::string> texts = texts_of(generated);
    for (const std::string& text : texts) spdlog::info("step {}: {}", step, printable(text));
    return texts;
  } catch (const std::exception& error) {  // no run ends because nobody can read its texts
    spdlog::warn("step {}: no texts: {}", step, error.what());
    return {};
  }
}

std::vector<std::string> TrainingSamples::texts_of(const std::vector<GeneratedText>& generated) {
  std::vector<std::string> texts;
  for (size_t i = 0; i < generated.size(); ++i) {
    std::vector<int64_t> tokens;
    for (const GeneratedToken& token : generated[i].tokens) tokens.push_back(token.token);
    texts.push_back(job_.job().validation.prompts->texts[i] + coder_->text_behind(prompts_[i], tokens));
  }
  return texts;
}

void append_samples(MetricsRecord& record, const std::vector<std::string>& samples) {
  for (size_t i = 0; i < samples.size(); ++i) record.emplace_back(fmt::format("sample/{}", i), samples[i]);
}

}  // namespace conclave
