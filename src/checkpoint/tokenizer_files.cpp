#include "checkpoint/tokenizer_files.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>
#include <system_error>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/strict_json.h"
#include "base/text_file.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 14> names = {"added_tokens.json",
                                                    "chat_template.jinja",
                                                    "chat_template.json",
                                                    "merges.txt",
                                                    "processor_config.json",
                                                    "sentencepiece.bpe.model",
                                                    "source.spm",
                                                    "special_tokens_map.json",
                                                    "spiece.model",
                                                    "target.spm",
                                                    "tekken.json",
                                                    "vocab.json",
                                                    "vocab.model",
                                                    "vocab.txt"};
constexpr uint64_t most_bytes = 500'000'000;

// The largest id seen, plus 1.
struct Ids {
  std::optional<int64_t> count;

  void see(int64_t id) { count = std::max(count.value_or(0), id + 1); }
  void see(const json& id, const std::string& origin) {
    if (!id.is_number_integer() || id < 0) user_error("{}: {} is no token id.", origin, id.dump());
    see(id.get<int64_t>());
  }
};

// {token: id}.
void see_map(Ids& ids, const json& map, const std::string& origin) {
  if (!map.is_object()) return;
  for (const auto& [token, id] : map.items()) ids.see(id, origin);
}

// tokenizer.json of the tokenizers library: a vocabulary by token, or a list in the order of ids, and added tokens.
void see_tokenizer_json(Ids& ids, const json& content, const std::string& origin) {
  if (!content.is_object()) user_error("{} is not a tokenizer: it is not a JSON object.", origin);
  const json model = content.value("model", json::object());
  const json vocabulary = model.is_object() ? model.value("vocab", json()) : json();
  if (vocabulary.is_array() && !vocabulary.empty()) ids.see(static_cast<int64_t>(vocabulary.size()) - 1);
  see_map(ids, vocabulary, origin);
  const json added = content.value("added_tokens", json::array());
  if (!added.is_array()) return;
  for (const json& token : added)
    if (token.is_object() && token.contains("id")) ids.see(token["id"], origin);
}

// tokenizer_config.json names added tokens by their ids.
void see_tokenizer_config(Ids& ids, const json& content, const std::string& origin) {
  const json added = content.is_object() ? content.value("added_tokens_decoder", json()) : json();
  if (!added.is_object()) return;
  for (const auto& [text, token] : added.items()) {
    int64_t id = -1;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
    if (error != std::errc() || end != text.data() + text.size() || id < 0)
      user_error("{}: \"{}\" is no token id.", origin, text);
    ids.see(id);
  }
}

// A sentencepiece model is a protocol buffer whose field 1 comes once for each piece, in the order of ids.
void see_pieces(Ids& ids, std::string_view content, const std::string& origin) {
  size_t at = 0;
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && at < content.size(); shift += 7) {
      const auto byte = static_cast<unsigned char>(content[at++]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    user_error("{} is not a sentencepiece model.", origin);
  };
  int64_t pieces = 0;
  while (at < content.size()) {
    const uint64_t tag = varint();
    constexpr uint64_t by_length = 2;
    const uint64_t bytes = (tag & 7) == by_length ? varint() : content.size() + 1;  // all fields of such a model are
    if (bytes > content.size() - at) user_error("{} is not a sentencepiece model.", origin);
    at += bytes;
    if (tag >> 3 == 1) ++pieces;
  }
  if (pieces > 0) ids.see(pieces - 1);
}

void copy_chat_templates(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::filesystem::create_directory(to);
  for (const auto& entry : std::filesystem::directory_iterator(from))
    if (entry.is_regular_file())
      write_file_atomically(to / entry.path().filename(), read_text_file(entry.path(), most_bytes));
  flush_to_disk(to);
}

}  // namespace

bool is_tokenizer_file(std::string_view name) {
  const auto between = [&](std::string_view begin, std::string_view end) {
    return name.size() >= begin.size() + end.size() && name.starts_with(begin) && name.ends_with(end);
  };
  return std::find(names.begin(), names.end(), name) != names.end() || name.starts_with("tokenizer.") ||
         between("tokenizer", ".json") || between("tokenization_", ".py") || name.ends_with(".tiktoken");
}

void copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code failed;
  for (std::filesystem::directory_iterator entry(from, failed), end; !failed && entry != end; entry.increment(failed)) {
    const std::filesystem::path name = entry->path().filename();
    if (name == chat_templates_folder && is_folder(entry->path())) {
      copy_chat_templates(entry->path(), to / name);
    } else if (is_tokenizer_file(name.string())) {
      write_file_atomically(to / name, read_text_file(entry->path(), most_bytes));
    }
  }
  if (failed) user_error("cannot copy the tokenizer from {}: {}.", from.string(), failed.message());
}

std::optional<int64_t> tokenizer_ids(const std::filesystem::path& folder) {
  Ids ids;
  const auto see_json = [&](const char* name, auto see) {
    const std::filesystem::path file = folder / name;
    if (!has_name(file)) return false;
    see(ids, parse_strict_json(read_text_file(file, most_bytes), file.string()), file.string());
    return true;
  };
  // As Transformers does: the slow forms count where there is no tokenizer.json.
  if (!see_json("tokenizer.json", see_tokenizer_json)) {
    see_json("vocab.json", see_map);
    const std::filesystem::path pieces = folder / "tokenizer.model";
    if (has_name(pieces)) see_pieces(ids, read_text_file(pieces, most_bytes), pieces.string());
    see_json("added_tokens.json", see_map);
  }
  if (ids.count) see_json("tokenizer_config.json", see_tokenizer_config);
  return ids.count;
}

}  // namespace conclave
