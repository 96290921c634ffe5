#include "generate/generation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "generate/growing_text.h"

namespace conclave {
namespace {

class Generation {
 public:
  Generation(CachedModel& model, Communicator& ranks, const std::vector<std::vector<int64_t>>& prompts,
             const GenerationOptions& options, const GenerationListener& listener, KeptSequence* kept)
      : model_(model),
        ranks_(ranks),
        prompts_(prompts),
        options_(options),
        listener_(listener),
        kept_(kept),
        texts_(prompts.size()) {}

  std::vector<GeneratedText> run() {
    while (true) {
      admit();
      if (growing_.empty()) return std::move(texts_);
      const std::vector<GeneratedToken> tokens = tell(compute_own());
      const std::vector<int64_t> ended = agree(listener_(tokens));
      for (const GeneratedToken& token : tokens) grow(token, ended);
    }
  }

 private:
  // Of a text while it grows. Every rank has all of them, and computes those that are its own.
  bool is_own(const GrowingText& text) const { return text.prompt() % ranks_.size() == ranks_.rank(); }

  void admit() {
    while (static_cast<int64_t>(growing_.size()) < options_.sequences && next_ < prompts_.size()) {
      KeptSequence kept{{}, model_.new_cache()};
      if (kept_ != nullptr && !kept_->tokens.empty()) kept = std::exchange(*kept_, {});
      growing_.emplace_back(static_cast<int64_t>(next_), prompts_[next_], std::move(kept));
      ++next_;
    }
  }

  // A row for each text: the next token + 1, or 0 of a text that has none in this pass; its alternatives, and their log
  // probabilities.
  at::Tensor compute_own() {
    CachedModel::Pass pass;
    std::vector<std::pair<size_t, int64_t>> completed;  // a text's place, and its row among the pass's logits
    int64_t sequence = 0;
    for (size_t place = 0; place < growing_.size(); ++place) {
      const auto room = options_.tokens_of_pass - static_cast<int64_t>(pass.tokens.size());
      if (!is_own(growing_[place]) || room == 0) continue;
      if (growing_[place].join(pass, room)) completed.emplace_back(place, sequence);
      ++sequence;
    }
    const at::Tensor logits_BV = model_.extend(std::move(pass));
    const at::Tensor message =
        at::zeros({static_cast<int64_t>(growing_.size()), 1 + 2 * options_.alternatives}, at::kDouble);
    for (const auto& [place, row] : completed)
      choose(growing_[place], logits_BV[row], message[static_cast<int64_t>(place)]);
    return message;
  }

  void choose(const GrowingText& text, const at::Tensor& logits_V, const at::Tensor& message) const {
    const at::Tensor filtered_V = filtered_logits(logits_V, text.tokens(), options_.sampling);
    const auto position = static_cast<int64_t>(text.tokens().size());
    const double draw = draw_of(options_.seed, text.prompt(), position);
    message[0] = static_cast<double>(1 + choose_token(filtered_V, options_.sampling, draw));
    const int64_t count = options_.alternatives;
    if (count == 0) return;
    const auto [most, token] = at::topk(at::log_softmax(filtered_V.to(at::kDouble), -1), count);
    message.narrow(0, 1, count).copy_(token);
    message.narrow(0, 1 + count, count).copy_(most);
  }

  // The new tokens of all ranks.
  std::vector<GeneratedToken> tell(const at::Tensor& message) {
    ranks_.all_reduce(message).wait();  // every row is one rank's alone
    std::vector<GeneratedToken> tokens;
    for (size_t place = 0; place < growing_.size(); ++place) {
      const at::Tensor row = message[static_cast<int64_t>(place)];
      const auto* number = row.const_data_ptr<double>();
      if (number[0] == 0) continue;
      GeneratedToken& token =
          tokens.emplace_back(GeneratedToken{growing_[place].prompt(), static_cast<int64_t>(number[0]) - 1, {}});
      for (int64_t i = 0; i < options_.alternatives; ++i)
        token.alternatives.push_back({static_cast<int64_t>(number[1 + i]), number[1 + options_.alternatives + i]});
    }
    return tokens;
  }

  // Rank 0's answer, on all ranks.
  std::vector<int64_t> agree(const std::vector<int64_t>& ended) {
    if (!options_.listener_ends_texts) return {};
    const at::Tensor ends = at::zeros({static_cast<int64_t>(growing_.size())}, at::kLong);
    for (size_t place = 0; place < growing_.size(); ++place)
      if (std::find(ended.begin(), ended.end(), growing_[place].prompt()) != ended.end())
        ends[static_cast<int64_t>(place)] = 1;
    ranks_.broadcast(ends, 0).wait();
    std::vector<int64_t> agreed;
    for (size_t place = 0; place < growing_.size(); ++place)
      if (ends.const_data_ptr<int64_t>()[place] != 0) agreed.push_back(growing_[place].prompt());
    return agreed;
  }

  void grow(const GeneratedToken& token, const std::vector<int64_t>& ended) {
    const auto text = std::find_if(growing_.begin(), growing_.end(),
                                   [&](const GrowingText& t) { return t.prompt() == token.prompt; });
    const bool is_finished = text->grow(token, options_);
    const bool is_ended = std::find(ended.begin(), ended.end(), token.prompt) != ended.end();
    if (is_ended) text->end(Finish::ended_by_listener);
    if (!is_finished && !is_ended) return;
    texts_[static_cast<size_t>(token.prompt)] = text->take();
    if (kept_ != nullptr) *kept_ = text->keep();
    growing_.erase(text);
  }

  CachedModel& model_;
  Communicator& ranks_;
  const std::vector<std::vector<int64_t>>& prompts_;
  const GenerationOptions& options_;
  const GenerationListener& listener_;
  KeptSequence* kept_;  // null: nothing is kept
  std::vector<GeneratedText> texts_;
  std::deque<GrowingText> growing_;  // in the order of prompts
  size_t next_ = 0;                  // prompt
};

}  // namespace

std::vector<GeneratedText> generate(CachedModel& model, Communicator& ranks,
                                    const std::vector<std::vector<int64_t>>& prompts, const GenerationOptions& options,
                                    const GenerationListener& listener, KeptSequence* kept) {
  return Generation(model, ranks, prompts, options, listener, kept).run();
}

}  // namespace conclave
