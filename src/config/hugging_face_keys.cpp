#include "config/hugging_face_keys.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <system_error>

#include "base/error.h"
#include "config/mistake.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr int64_t largest_size = std::numeric_limits<int32_t>::max();  // so that products of two sizes cannot overflow

json parse_object(const ConfigText& config) {
  try {
    json content = json::parse(config.text);
    if (content.is_object()) return content;
  } catch (const json::exception& error) {
    const std::string_view reason = error.what();  // begins with "[json.exception....] "
    throw UserError(
        mistake(fmt::format("the model config is not valid JSON: {}.", reason.substr(reason.find("] ") + 2)), "",
                config.origin));
  }
  throw UserError(mistake("the model config is not a JSON object.", "", config.origin));
}

bool is_size(const json& value) {
  return value.is_number_integer() && value >= 1 && value <= largest_size;
}

}  // namespace

ConfigText read_config_text(const std::filesystem::path& file_or_folder, const std::string& model) {
  const std::string remedy = fmt::format("Give a Hugging Face config.json of {}, or a folder that holds one.", model);
  std::error_code unreadable;
  std::filesystem::path file = file_or_folder;
  if (std::filesystem::is_directory(file_or_folder, unreadable)) {
    file /= "config.json";
    if (!std::filesystem::exists(file, unreadable))
      throw UserError(mistake(fmt::format("the folder {} holds no config.json.", file_or_folder.string()), remedy, ""));
  }
  std::ifstream stream(file);
  if (!stream.is_open() || stream.peek() == std::ifstream::traits_type::eof())
    throw UserError(
        mistake(fmt::format("the model config {} {}.", file.string(),
                            stream.is_open() ? "is empty or cannot be read" : "does not exist or cannot be read"),
                remedy, ""));
  return {{std::istreambuf_iterator<char>(stream), {}}, file.string()};
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

// Transformers 4 writes rope_theta and rope_scaling, 5 writes rope_parameters with both; files with all of them exist.
void HuggingFaceKeys::read_rope(double& theta) {
  read_number("rope_theta", theta, 0, false);
  if (!missing("rope_scaling"))
    refuse(fmt::format("rope_scaling is {}, but this version scales no rotary embedding.", at("rope_scaling").dump()),
           "Set it to null, or remove it, if the model was trained without.");
  if (missing("rope_parameters")) return;
  const json& parameters = at("rope_parameters");
  if (!parameters.is_object()) {
    refuse(fmt::format("rope_parameters is {}, but it must be an object.", parameters.dump()), "");
    return;
  }
  const json type = parameters.value("rope_type", json("default"));
  if (type != "default")
    refuse(fmt::format("rope_parameters.rope_type is {}, but this version has the default rotary embedding only.",
                       type.dump()),
           "Use a model whose rope_type is \"default\".");
  if (!parameters.contains("rope_theta")) return;
  const json& inner = parameters["rope_theta"];
  if (!inner.is_number() || inner <= 0) {
    refuse(fmt::format("rope_parameters.rope_theta is {}, but it must be a number above 0.", inner.dump()), "");
  } else if (!missing("rope_theta") && at("rope_theta") != inner) {
    refuse(
        fmt::format("rope_theta is {}, but rope_parameters.rope_theta is {}.", at("rope_theta").dump(), inner.dump()),
        "Keep one of them, or make them equal.");
  } else {
    theta = inner.get<double>();
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

void HuggingFaceKeys::check_supported() {
  only("hidden_act", "silu", true, "this version has experts with silu only");
  only("attention_dropout", 0, true, "this version has no attention dropout");
  if (!missing("quantization_config"))
    refuse("quantization_config is given, but this version does not read quantized models.",
           "Use the model's unquantized form.");
}

void HuggingFaceKeys::refuse(const std::string& problem, const std::string& remedy) {
  mistakes_.push_back(mistake(problem, remedy, place_));
}

void HuggingFaceKeys::finish() const {
  refuse_if_any(mistakes_);
}

}  // namespace conclave
