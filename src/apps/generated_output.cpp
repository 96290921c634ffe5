#include "apps/generated_output.h"

#include <fmt/ranges.h>

#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>

namespace conclave {
namespace {

using nlohmann::ordered_json;

const char* word_for(Finish finish) {
  switch (finish) {
    case Finish::end_token:
      return "end";
    case Finish::ended_by_listener:
      return "stop";
    case Finish::length:
      break;
  }
  return "length";
}

std::vector<int64_t> ids_of(const GeneratedText& generated) {
  std::vector<int64_t> ids;
  for (const GeneratedToken& token : generated.tokens) ids.push_back(token.token);
  return ids;
}

}  // namespace

GeneratedOutput::GeneratedOutput(const Prompts& prompts, bool json, TextProcess* text)
    : prompts_(prompts), json_(json), text_(text) {
  if (shows_at_once() && text_ != nullptr) std::cout << prompts_.texts[0] << std::flush;
  if (shows_at_once() && text_ == nullptr)
    std::cout << fmt::format("{}", fmt::join(prompts_.tokens[0], " ")) << std::flush;
}

std::vector<int64_t> GeneratedOutput::take(std::span<const GeneratedToken> tokens) {
  if (text_ == nullptr) {
    if (shows_at_once())
      for (const GeneratedToken& token : tokens) std::cout << ' ' << token.token << std::flush;
    return {};
  }
  std::vector<std::pair<int64_t, int64_t>> token_of_text;
  for (const GeneratedToken& token : tokens) {
    if (!written_.contains(token.prompt)) {
      text_->begin_text(token.prompt, prompts_.tokens[static_cast<size_t>(token.prompt)]);
      written_[token.prompt];
    }
    token_of_text.emplace_back(token.prompt, token.token);
  }
  const TextProcess::Shown shown = text_->append(token_of_text);
  for (size_t i = 0; i < tokens.size(); ++i) {
    written_[tokens[i].prompt] += shown.text[i];
    if (shows_at_once()) std::cout << shown.text[i] << std::flush;
  }
  return shown.stopped;
}

std::string GeneratedOutput::line_of(size_t prompt, const GeneratedText& generated) const {
  ordered_json line = {{"prompt", prompt},
                       {"prompt_ids", prompts_.tokens[prompt]},
                       {"ids", ids_of(generated)},
                       {"finish", word_for(generated.finish)}};
  if (text_ != nullptr) {
    line["prompt_text"] = prompts_.texts[prompt];
    line["text"] = written_.at(static_cast<int64_t>(prompt));
  }
  if (!generated.tokens.empty() && !generated.tokens[0].alternatives.empty()) {
    ordered_json all = ordered_json::array();
    for (const GeneratedToken& token : generated.tokens) {
      ordered_json of_token = ordered_json::array();
      for (const Alternative& other : token.alternatives)
        if (std::isfinite(other.log_probability)) of_token.push_back({other.token, other.log_probability});
      all.push_back(std::move(of_token));
    }
    line["alternatives"] = std::move(all);
  }
  return line.dump(-1, ' ', /*ensure_ascii=*/false, ordered_json::error_handler_t::replace);
}

void GeneratedOutput::finish(const std::vector<GeneratedText>& texts) {
  for (size_t i = 0; i < texts.size(); ++i) {
    const auto prompt = static_cast<int64_t>(i);
    std::string rest;
    if (text_ != nullptr) written_[prompt] += rest = text_->end_text(prompt);
    if (json_)
      std::cout << line_of(i, texts[i]) << '\n';
    else if (shows_at_once())
      std::cout << rest << '\n';
    else if (text_ != nullptr)
      std::cout << (i > 0 ? "\n" : "") << "-- " << i + 1 << '\n' << prompts_.texts[i] << written_[prompt] << '\n';
    else
      std::cout << fmt::format("{} {}\n", fmt::join(prompts_.tokens[i], " "), fmt::join(ids_of(texts[i]), " "));
  }
  std::cout << std::flush;
}

}  // namespace conclave
