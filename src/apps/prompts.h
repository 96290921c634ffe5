// The prompts of `conclave generate`: texts, or token ids, which need no tokenizer and no Python.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "apps/text_process.h"
#include "step/parallel_job.h"

namespace conclave {

struct PromptOptions {
  std::vector<std::string> texts;
  std::filesystem::path file;    // a text in each line, or objects with a key prompt
  std::vector<std::string> ids;  // "1 2 3"

  void add_to(CLI::App& command);
  // UserError unless exactly one kind of prompt is given; reads the file.
  void check() const;
  bool are_texts() const { return ids.empty(); }
};

struct Prompts {
  std::vector<std::vector<int64_t>> tokens;
  std::vector<std::string> texts;  // empty where ids were given
};

Prompts token_prompts(const PromptOptions& options);
// The same on all ranks, by rank 0's tokenizer where they are texts; null on other ranks. Collective.
Prompts read_prompts(const PromptOptions& options, TextProcess* text, Communicator& ranks);

// On rank 0, else null. One outcome for all ranks. Collective.
std::unique_ptr<TextProcess> start_text_process(ParallelJob& job, const std::filesystem::path& tokenizer,
                                                const std::vector<std::string>& stop_words);

}  // namespace conclave
