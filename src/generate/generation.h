// Texts that go on from prompts, token by token. Prompts are taken in their order, some at a time: one that has its
// text leaves its place to the next, whose prompt is then computed beside the others' next tokens.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "comm/communicator.h"
#include "generate/cached_model.h"
#include "generate/sampling.h"

namespace conclave {

struct GenerationOptions {
  Sampling sampling;
  int64_t max_new_tokens = 128;
  uint64_t seed = 0;
  std::vector<int64_t> end_tokens;   // of a text, each: the text has it as its last token
  int64_t most_positions = 0;        // of a sequence, prompt included
  int64_t sequences = 16;            // at a time, over all ranks
  int64_t tokens_of_pass = 2048;     // of a rank: a longer prompt is computed in several passes
  int64_t alternatives = 0;          // the most likely tokens that are told beside each token
  bool listener_ends_texts = false;  // what listeners return counts
};

enum class Finish { length, end_token, ended_by_listener };

struct Alternative {
  int64_t token = 0;
  double log_probability = 0;  // as the draw saw it
};

struct GeneratedToken {
  int64_t prompt = 0;  // its index
  int64_t token = 0;
  std::vector<Alternative> alternatives;  // the most likely first
};

struct GeneratedText {
  std::vector<GeneratedToken> tokens;
  Finish finish = Finish::length;
};

// Hears every pass's new tokens, on every rank alike, in the order of prompts. Returns the prompts whose texts end with
// their new token; rank 0's answer counts.
using GenerationListener = std::function<std::vector<int64_t>(std::span<const GeneratedToken> tokens)>;

// What a text leaves for the next one that begins alike, such as the next turn of a conversation: what was computed of
// it, on the rank that did.
struct KeptSequence {
  std::vector<int64_t> tokens;
  SequenceCache cache;
};

// The texts of all prompts, on all ranks. `prompts`: the same on all ranks, none empty, each shorter than
// most_positions. `ranks`: the world, for tensors of the host. `kept`: of the text before, then of this one; for one
// prompt at a time. Collective.
std::vector<GeneratedText> generate(CachedModel& model, Communicator& ranks,
                                    const std::vector<std::vector<int64_t>>& prompts, const GenerationOptions& options,
                                    const GenerationListener& listener, KeptSequence* kept = nullptr);

}  // namespace conclave
