// The keys of a Hugging Face config.json: values are taken out, and what is wrong with them is collected, so that one
// refusal holds all mistakes. A value that is refused keeps the caller's default. It is remembered which keys were
// asked for, so that a key that means nothing is noticed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace conclave {

struct ConfigText {
  std::string text;
  std::string origin;  // the file, for messages
};
// Of a config.json, or of the one in a folder. `model`: what it should be of, for messages. UserError.
ConfigText read_config_text(const std::filesystem::path& file_or_folder, const std::string& model);

// Null, false, 0, "", [] and {}: what Python takes for no.
bool is_nothing(const nlohmann::json& value);

class HuggingFaceKeys {
 public:
  // UserError when the text is not JSON (see strict_json.h), or no object.
  explicit HuggingFaceKeys(const ConfigText& config);

  bool absent(const char* key) const {
    asked_for_.insert(key);
    return !content_.contains(key);
  }
  // Null or absent.
  bool missing(const char* key) const { return absent(key) || content_[key].is_null(); }
  const nlohmann::json& at(const char* key) const { return content_.at(key); }

  void read_required_size(const char* key, int64_t& value);
  void read_size(const char* key, int64_t& value);
  // The same, and 0.
  void read_count(const char* key, int64_t& value);
  void read_number(const char* key, double& value, double least, bool least_is_allowed);
  void read_flag(const char* key, bool& value);
  // One token, several, or none. An absent key leaves the default; null means none.
  void read_tokens(const char* key, std::vector<int64_t>& tokens);
  void read_token(const char* key, std::optional<int64_t>& token);
  // Refuses every other value of the key, and its absence unless it may be missing. `reason` follows "but".
  void only(const char* key, const nlohmann::json& wanted, bool may_be_missing, const std::string& reason);
  // The same for a key that says one word for each of `layers` layers, where all are alike here.
  void only_for_each_layer(const char* key, int64_t layers, const std::string& wanted);

  void refuse(const std::string& problem, const std::string& remedy);
  // Throws a UserError if anything was refused.
  void finish() const;

  // Keys that nobody asked for, and that do not mean nothing on purpose (ignored_keys.h).
  std::vector<std::string> unknown() const;

 private:
  nlohmann::json content_;
  std::string place_;
  mutable std::set<std::string, std::less<>> asked_for_;
  std::vector<std::string> mistakes_;
};

}  // namespace conclave
