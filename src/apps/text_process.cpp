#include "apps/text_process.h"

#include "base/error.h"
#include "base/strict_json.h"

namespace conclave {
namespace {

using nlohmann::json;

std::vector<std::string> words_of(const std::filesystem::path& tokenizer, const std::vector<std::string>& stop_words) {
  std::vector<std::string> words = {std::filesystem::absolute(tokenizer).string()};
  for (const std::string& word : stop_words) words.push_back("--stop=" + word);
  return words;
}

}  // namespace

TextProcess::TextProcess(const std::filesystem::path& tokenizer, const std::vector<std::string>& stop_words)
    : python_("conclave.generated_text", words_of(tokenizer, stop_words)) {
  answer();
}

json TextProcess::answer() {
  json answer = parse_strict_json(python_.read_line(), "what conclave.generated_text says");
  if (answer.contains("error")) throw UserError(answer["error"].get<std::string>());
  return answer;
}

json TextProcess::ask(const json& request) {
  python_.write_line(request.dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace));
  return answer();
}

std::vector<std::vector<int64_t>> TextProcess::encode(const std::vector<std::string>& texts) {
  return ask({{"do", "encode"}, {"texts", texts}})["ids"].get<std::vector<std::vector<int64_t>>>();
}

std::string TextProcess::text_behind(const std::vector<int64_t>& prompt, const std::vector<int64_t>& tokens) {
  begin_text(0, prompt);
  std::string text;
  for (const int64_t token : tokens) text += append({{0, token}}).text[0];
  return text + end_text(0);
}

std::vector<int64_t> TextProcess::encode_chat(const std::vector<Message>& messages) {
  json written = json::array();
  for (const Message& message : messages) written.push_back({{"role", message.role}, {"content", message.content}});
  return ask({{"do", "chat"}, {"messages", written}})["ids"].get<std::vector<int64_t>>();
}

void TextProcess::begin_text(int64_t text, const std::vector<int64_t>& prompt) {
  ask({{"do", "begin"}, {"text", text}, {"ids", prompt}});
}

TextProcess::Shown TextProcess::append(const std::vector<std::pair<int64_t, int64_t>>& token_of_text) {
  const json answer = ask({{"do", "append"}, {"tokens", token_of_text}});
  return {answer.at("shown").get<std::vector<std::string>>(), answer.at("stopped").get<std::vector<int64_t>>()};
}

std::string TextProcess::end_text(int64_t text) {
  return ask({{"do", "end"}, {"text", text}})["shown"].get<std::string>();
}

}  // namespace conclave
