// conclave data: making token files (which `python -m conclave.data` does), and looking into them.
#include <iostream>
#include <memory>

#include "apps/command.h"
#include "apps/command_line.h"
#include "apps/python_pipe.h"
#include "base/error.h"
#include "data/bigram_model.h"
#include "data/inspect.h"

namespace conclave {
namespace {

// The words behind the command's name, --help too, are the module's to understand.
void add_module_command(CLI::App& data, const std::string& name, const std::string& what) {
  CLI::App* command = data.add_subcommand(name, what)->prefix_command();
  command->set_help_flag();
  command->callback([command, name] {
    std::vector<std::string> words = command->remaining();
    words.insert(words.begin(), name);
    become_python("conclave.data", words);
  });
}

// Pairs are counted and scored over all tokens, which is not what a model is trained on where there is a mask.
void refuse_mask(const IndexedTokens& set) {
  if (set.mask() != nullptr)
    user_error(
        "--ngram counts all tokens, but {} has a mask, and the loss is of some of them only.\n       Leave --ngram "
        "out.",
        set.prefix().string());
}

}  // namespace

void add_data(CLI::App& app, int& exit_code) {
  struct Options {
    std::string prefix;
    std::string ngram;
    int64_t sequence_length = 2048;
    int64_t vocab_size = IndexedTokens::any_vocabulary;
  };
  auto options = std::make_shared<Options>();
  CLI::App* data = app.add_subcommand("data", "make token files and tokenizers, and look into token files");
  data->require_subcommand(1);
  add_module_command(*data, "build", "tokenize documents into token files");
  add_module_command(*data, "train-tokenizer", "train a byte-level BPE tokenizer");
  add_module_command(*data, "synthetic", "write token files without a text");
  CLI::App* command = data->add_subcommand("inspect", "check a .bin/.idx pair and show what it holds");
  command->add_option("prefix", options->prefix, "the path of the pair without .bin or .idx")->required();
  command->add_option("--sequence-length", options->sequence_length, "of a sample")->check(above_zero());
  command->add_option("--vocab-size", options->vocab_size, "refuse token ids from this one on")->check(above_zero());
  command->add_option("--ngram", options->ngram,
                      "a validation pair: also its unigram and bigram cross-entropy, estimated on the first pair");
  command->callback([options] {
    const IndexedTokens set(options->prefix, options->vocab_size);
    std::cout << inspect_text(set, options->sequence_length);
    if (options->ngram.empty()) return;
    refuse_mask(set);
    const int64_t vocabulary =
        options->vocab_size == IndexedTokens::any_vocabulary ? set.highest_token() + 1 : options->vocab_size;
    const IndexedTokens validation(options->ngram, vocabulary);
    refuse_mask(validation);
    std::cout << ngram_text(ngram_cross_entropy(set, validation, vocabulary, options->sequence_length));
  });
  (void)exit_code;  // a mistake leaves by an exception
}

}  // namespace conclave
