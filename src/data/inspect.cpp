#include "data/inspect.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <vector>

#include "base/error.h"
#include "data/fingerprint.h"

namespace conclave {
namespace {

constexpr int64_t first_tokens_shown = 16;

// Occurrences by token id. A map, because a damaged set of 64-bit tokens can hold any id.
struct TokenCounts {
  std::vector<int64_t> of_small_id = std::vector<int64_t>(1 << 18);
  std::unordered_map<int64_t, int64_t> of_large_id;
  int64_t highest = 0;
};

TokenCounts count_tokens(const IndexedTokens& set) {
  TokenCounts counts;
  std::vector<int64_t> tokens;
  constexpr int64_t block = 1 << 16;
  for (int64_t begin = 0; begin < set.tokens(); begin += block) {
    tokens.resize(static_cast<size_t>(std::min(block, set.tokens() - begin)));
    set.read(begin, tokens);
    for (const int64_t id : tokens) {
      counts.highest = std::max(counts.highest, id);
      if (id < static_cast<int64_t>(counts.of_small_id.size()))
        ++counts.of_small_id[static_cast<size_t>(id)];
      else
        ++counts.of_large_id[id];
    }
  }
  return counts;
}

// In nats a token, over `total` tokens; `different` receives the number of ids that occur.
double entropy_of(const TokenCounts& counts, int64_t total, int64_t& different) {
  double entropy = 0;
  const auto add = [&](int64_t count) {
    if (count == 0) return;
    const double probability = static_cast<double>(count) / static_cast<double>(total);
    entropy -= probability * std::log(probability);
    ++different;
  };
  different = 0;
  for (const int64_t count : counts.of_small_id) add(count);
  for (const auto& [id, count] : counts.of_large_id) add(count);
  return entropy;
}

struct Lengths {
  int64_t shortest, median, longest;
  double mean;
};

Lengths document_lengths(const IndexedTokens& set) {
  std::vector<int64_t> lengths(static_cast<size_t>(set.documents()));
  for (size_t d = 0; d < lengths.size(); ++d)
    lengths[d] =
        set.first_token_of_document(static_cast<int64_t>(d) + 1) - set.first_token_of_document(static_cast<int64_t>(d));
  const auto middle = lengths.begin() + static_cast<std::ptrdiff_t>((lengths.size() - 1) / 2);
  std::nth_element(lengths.begin(), middle, lengths.end());
  const auto [shortest, longest] = std::minmax_element(lengths.begin(), lengths.end());
  return {*shortest, *middle, *longest, static_cast<double>(set.tokens()) / static_cast<double>(lengths.size())};
}

// "0 0 1 1": of the first tokens, which are trained on.
std::string mask_text(const TokenMask& mask, size_t tokens) {
  std::vector<uint8_t> trained(tokens);
  mask.read(0, trained);
  return fmt::format("{}", fmt::join(trained, " "));
}

}  // namespace

std::string inspect_text(const IndexedTokens& set, int64_t sequence_length) {
  check_invariant(sequence_length >= 1, "sequence length {}", sequence_length);
  const TokenCounts counts = count_tokens(set);
  const Lengths lengths = document_lengths(set);
  int64_t different = 0;
  const double entropy = entropy_of(counts, set.tokens(), different);
  std::vector<int64_t> first(static_cast<size_t>(std::min(first_tokens_shown, set.tokens())));
  set.read(0, first);

  std::string text = fmt::format("data set {}\n", set.prefix().string());
  const auto line = [&](const char* what, const std::string& value) {
    text += fmt::format("  {:<22}{}\n", what, value);
  };
  line("tokens", fmt::format("{} ({}, {} bytes)", set.tokens(), name_of(set.type()), set.token_file().size()));
  if (const TokenMask* mask = set.mask()) {
    mask->check();
    line("trained on", fmt::format("{} tokens, {:.1f} % (mask: {} bytes)", mask->trained(),
                                   100.0 * static_cast<double>(mask->trained()) / static_cast<double>(set.tokens()),
                                   mask->file().size()));
  }
  line("documents",
       fmt::format("{} in {} sequences (index: {} bytes)", set.documents(), set.sequences(), set.index_file().size()));
  line("tokens a document", fmt::format("shortest {}, median {}, mean {:.1f}, longest {}", lengths.shortest,
                                        lengths.median, lengths.mean, lengths.longest));
  const int64_t samples = (set.tokens() - 1) / sequence_length;
  const int64_t unread = set.tokens() - 1 - samples * sequence_length;
  line("samples an epoch",
       fmt::format("{} at sequence length {}{}", samples, sequence_length,
                   samples == 0 ? " (too few tokens: it cannot be used at this length)"
                   : unread > 0 ? fmt::format(" (tokens at the end that fill none and are not read: {})", unread)
                                : ""));
  line("highest token id", fmt::format("{} (the model's vocab_size must be at least {}; {} different ids occur)",
                                       counts.highest, counts.highest + 1, different));
  line("unigram entropy", fmt::format("{:.4f} nats a token", entropy));
  line("fingerprint", fingerprint(set));
  std::string tokens;
  for (const int64_t id : first) tokens += fmt::format("{}{}", tokens.empty() ? "" : " ", id);
  line("first tokens", tokens);
  if (const TokenMask* mask = set.mask()) line("trained on of these", mask_text(*mask, first.size()));
  return text;
}

std::string ngram_text(const NgramCrossEntropy& result) {
  return fmt::format(
      "  unigram cross-entropy {:.4f} nats a token (perplexity {:.2f})\n"
      "  bigram cross-entropy  {:.4f} nats a token (perplexity {:.2f})\n"
      "  over {} validation targets; estimated on the training set with modified Kneser-Ney smoothing (lower order: "
      "{})\n",
      result.unigram, std::exp(result.unigram), result.bigram, std::exp(result.bigram), result.targets,
      result.lower_order == LowerOrder::frequency ? "frequencies" : "continuations");
}

}  // namespace conclave
