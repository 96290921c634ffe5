#include "families/hugging_face_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/shown_path.h"
#include "base/strict_json.h"
#include "base/text_file.h"
#include "config/mistake.h"
#include "families/ignored_keys.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr uint64_t most_config_bytes = 10'000'000;
constexpr int64_t largest_size = std::numeric_limits<int32_t>::max();  // so that products of two sizes cannot overflow

json parse_object(const ConfigText& config) {
  json content = parse_strict_json(config.text, config.origin);
  if (!content.is_object()) throw UserError(mistake("the model config is not a JSON object.", "", config.origin));
  return content;
}

bool is_size(const json& value) {
  return value.is_number_integer() && value >= 1 && value <= largest_size;
}

}  // namespace

ConfigText read_config_text(const std::filesystem::path& file_or_folder, const std::string& model) {
  const std::string remedy = fmt::format("Give a Hugging Face config.json of {}, or a folder that holds one.", model);
  std::filesystem::path file = file_or_folder;
  if (is_folder(file_or_folder)) {
    file /= "config.json";
    if (!has_name(file))
      throw UserError(
          mistake(fmt::format("the folder {} holds no config.json.", shown_path(file_or_folder)), remedy, ""));
  }
  try {
    return {read_text_file(file, most_config_bytes), file.string()};
  } catch (const UserError& error) {
    throw UserError(mistake(fmt::format("the model config is of no use: {}", error.what()), remedy, ""));
  }
}

bool is_nothing(const json& value) {
  if (value.is_boolean()) return !value.get<bool>();
  if (value.is_number()) return value.get<double>() == 0;
  if (value.is_string()) return value.get_ref<const std::string&>().empty();
  return value.empty();
}

HuggingFaceKeys::HuggingFaceKeys(const ConfigText& config) : content_(parse_object(config)), place_(config.origin) {}

void HuggingFaceKeys::read_required_size(const char* key, int64_t& value) {
  if (missing(key)) {
    refuse(fmt::format("{} is missing.", key), "");
  } else {
    read_size(key, value);
  }
}

void HuggingFaceKeys::read_size(const char* key, int64_t& value) {
  if (missing(key)) return;
  const json& found = content_[key];
  if (is_size(found)) {
    value = found.get<int64_t>();
  } else {
    refuse(fmt::format("{} is {}, but it must be a whole number from 1 to {}.", key, found.dump(), largest_size), "");
  }
}

void HuggingFaceKeys::read_count(const char* key, int64_t& value) {
  if (!missing(key) && content_[key].is_number_integer() && content_[key] == 0)
    value = 0;
  else
    read_size(key, value);
}

void HuggingFaceKeys::read_number(const char* key, double& value, double least, bool least_is_allowed) {
  if (missing(key)) return;
  const json& found = content_[key];
  const double number = found.is_number() ? found.get<double>() : std::nan("");
  if (number > least || (least_is_allowed && number == least)) {
    value = number;
  } else {
    refuse(fmt::format("{} is {}, but it must be a number {} {}.", key, found.dump(),
                       least_is_allowed ? "of at least" : "above", least),
           "");
  }
}

void HuggingFaceKeys::read_flag(const char* key, bool& value) {
  if (missing(key)) return;
  if (content_[key].is_boolean()) {
    value = content_[key].get<bool>();
  } else {
    refuse(fmt::format("{} is {}, but it must be true or false.", key, content_[key].dump()), "");
  }
}

void HuggingFaceKeys::read_tokens(const char* key, std::vector<int64_t>& tokens) {
  if (absent(key)) return;
  tokens.clear();
  const json& found = content_[key];
  if (found.is_null()) return;
  for (const json& token : found.is_array() ? found : json::array({found})) {
    if (token.is_number_integer() && token >= 0 && token <= largest_size) {
      tokens.push_back(token.get<int64_t>());
    } else {
      refuse(fmt::format("{} is {}, but it must be a token id, a list of them, or null.", key, found.dump()), "");
      return;
    }
  }
}

void HuggingFaceKeys::read_token(const char* key, std::optional<int64_t>& token) {
  std::vector<int64_t> tokens;
  if (token) tokens.push_back(*token);
  read_tokens(key, tokens);
  if (tokens.size() > 1) {
    refuse(fmt::format("{} is {}, but it must be a token id or null.", key, content_[key].dump()), "");
  } else {
    token = tokens.empty() ? std::nullopt : std::optional(tokens[0]);
  }
}

void HuggingFaceKeys::only(const char* key, const json& wanted, bool may_be_missing, const std::string& reason) {
  if (missing(key)) {
    if (!may_be_missing) refuse(fmt::format("{} is missing, and {}.", key, reason), "");
  } else if (at(key) != wanted) {
    refuse(fmt::format("{} is {}, but {}.", key, at(key).dump(), reason),
           fmt::format("Use a model whose {} is {}.", key, wanted.dump()));
  }
}

void HuggingFaceKeys::only_for_each_layer(const char* key, int64_t layers, const std::string& wanted) {
  if (missing(key)) return;
  const json& found = at(key);
  const bool alike = found.is_array() && static_cast<int64_t>(found.size()) == layers &&
                     std::all_of(found.begin(), found.end(), [&](const json& layer) { return layer == wanted; });
  if (!alike)
    refuse(fmt::format("{} is {}, but this version's {} layers are all \"{}\".", key, found.dump(), layers, wanted),
           "Remove the key if the model was trained so: Transformers computes all layers of this family alike.");
}

void HuggingFaceKeys::refuse(const std::string& problem, const std::string& remedy) {
  mistakes_.push_back(mistake(problem, remedy, place_));
}

void HuggingFaceKeys::finish() const {
  refuse_if_any(mistakes_);
}

std::vector<std::string> HuggingFaceKeys::unknown() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : content_.items())
    if (!asked_for_.contains(key) && !is_ignored_on_purpose(key)) keys.push_back(key);
  return keys;
}

}  // namespace conclave
