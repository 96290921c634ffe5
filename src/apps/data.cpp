// conclave data: looking into token files.
#include <iostream>
#include <memory>

#include "apps/command.h"
#include "data/bigram_model.h"
#include "data/inspect.h"

namespace conclave {

void add_data(CLI::App& app, int& exit_code) {
  struct Options {
    std::string prefix;
    std::string ngram;
    int64_t sequence_length = 2048;
    int64_t vocab_size = IndexedTokens::any_vocabulary;
  };
  auto options = std::make_shared<Options>();
  CLI::App* data = app.add_subcommand("data", "token files (made by `python -m conclave.data build`)");
  data->require_subcommand(1);
  CLI::App* command = data->add_subcommand("inspect", "check a .bin/.idx pair and show what it holds");
  command->add_option("prefix", options->prefix, "the path of the pair without .bin or .idx")->required();
  command->add_option("--sequence-length", options->sequence_length, "of a sample")->check(CLI::PositiveNumber);
  command->add_option("--vocab-size", options->vocab_size, "refuse token ids from this one on")
      ->check(CLI::PositiveNumber);
  command->add_option("--ngram", options->ngram,
                      "a validation pair: also its unigram and bigram cross-entropy, estimated on the first pair");
  command->callback([options] {
    const IndexedTokens set(options->prefix, options->vocab_size);
    std::cout << inspect_text(set, options->sequence_length);
    if (options->ngram.empty()) return;
    const int64_t vocabulary =
        options->vocab_size == IndexedTokens::any_vocabulary ? set.highest_token() + 1 : options->vocab_size;
    std::cout << ngram_text(
        ngram_cross_entropy(set, IndexedTokens(options->ngram, vocabulary), vocabulary, options->sequence_length));
  });
  (void)exit_code;  // a mistake leaves by an exception
}

}  // namespace conclave
