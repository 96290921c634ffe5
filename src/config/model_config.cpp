#include "config/model_config.h"

#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/error.h"
#include "config/mistake.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr int64_t largest_size = std::numeric_limits<int32_t>::max();  // so that products of two sizes cannot overflow

json parse_object(const std::string& text, const std::string& origin) {
  try {
    json content = json::parse(text);
    if (content.is_object()) return content;
  } catch (const json::exception& error) {
    const std::string_view reason = error.what();  // begins with "[json.exception....] "
    throw UserError(mistake(
        fmt::format("the model config is not valid JSON: {}.", reason.substr(reason.find("] ") + 2)), "", origin));
  }
  throw UserError(mistake("the model config is not a JSON object.", "", origin));
}

// Takes values out of the file and collects what is wrong with them. A value that is refused keeps the caller's
// default.
class Keys {
 public:
  Keys(const json& content, std::string place) : content_(content), place_(std::move(place)) {}

  bool absent(const char* key) const { return !content_.contains(key); }
  // Null or absent.
  bool missing(const char* key) const { return !content_.contains(key) || content_[key].is_null(); }

  void read_required_size(const char* key, int64_t& value) {
    if (missing(key)) {
      refuse(fmt::format("{} is missing.", key), "");
    } else {
      read_size(key, value);
    }
  }

  void read_size(const char* key, int64_t& value) {
    if (missing(key)) return;
    const json& found = content_[key];
    if (is_size(found)) {
      value = found.get<int64_t>();
    } else {
      refuse(fmt::format("{} is {}, but it must be a whole number from 1 to {}.", key, found.dump(), largest_size), "");
    }
  }

  void read_number(const char* key, double& value, double least, bool least_is_allowed) {
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

  void read_flag(const char* key, bool& value) {
    if (missing(key)) return;
    if (content_[key].is_boolean()) {
      value = content_[key].get<bool>();
    } else {
      refuse(fmt::format("{} is {}, but it must be true or false.", key, content_[key].dump()), "");
    }
  }

  // One token, several, or none. An absent key leaves the default; null means none.
  void read_tokens(const char* key, std::vector<int64_t>& tokens) {
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

  void read_token(const char* key, std::optional<int64_t>& token) {
    std::vector<int64_t> tokens;
    if (token) tokens.push_back(*token);
    read_tokens(key, tokens);
    if (tokens.size() > 1) {
      refuse(fmt::format("{} is {}, but it must be a token id or null.", key, content_[key].dump()), "");
    } else {
      token = tokens.empty() ? std::nullopt : std::optional(tokens[0]);
    }
  }

  void refuse(const std::string& problem, const std::string& remedy) {
    mistakes_.push_back(mistake(problem, remedy, place_));
  }

  const json& at(const char* key) const { return content_.at(key); }
  const std::vector<std::string>& mistakes() const { return mistakes_; }

 private:
  static bool is_size(const json& value) { return value.is_number_integer() && value >= 1 && value <= largest_size; }

  const json& content_;
  std::string place_;
  std::vector<std::string> mistakes_;
};

void check_architecture(Keys& keys) {
  const auto only = [&](const char* key, const json& wanted, bool may_be_missing, const std::string& reason) {
    if (keys.missing(key)) {
      if (!may_be_missing) keys.refuse(fmt::format("{} is missing, and {}.", key, reason), "");
    } else if (keys.at(key) != wanted) {
      keys.refuse(fmt::format("{} is {}, but {}.", key, keys.at(key).dump(), reason),
                  fmt::format("Use a model whose {} is {}.", key, wanted.dump()));
    }
  };
  only("model_type", "mixtral", false, "this version trains Mixtral models only");
  only("hidden_act", "silu", true, "this version has experts with silu only");
  only("attention_dropout", 0, true, "this version has no attention dropout");
  if (!keys.missing("quantization_config"))
    keys.refuse("quantization_config is given, but this version does not read quantized models.",
                "Use the model's unquantized form.");
}

// Transformers 4 writes rope_theta and rope_scaling, 5 writes rope_parameters with both; files with all of them exist.
void read_rope(Keys& keys, double& theta) {
  keys.read_number("rope_theta", theta, 0, false);
  if (!keys.missing("rope_scaling"))
    keys.refuse(
        fmt::format("rope_scaling is {}, but this version scales no rotary embedding.", keys.at("rope_scaling").dump()),
        "Set it to null, or remove it, if the model was trained without.");
  if (keys.missing("rope_parameters")) return;
  const json& parameters = keys.at("rope_parameters");
  if (!parameters.is_object()) {
    keys.refuse(fmt::format("rope_parameters is {}, but it must be an object.", parameters.dump()), "");
    return;
  }
  const json type = parameters.value("rope_type", json("default"));
  if (type != "default")
    keys.refuse(fmt::format("rope_parameters.rope_type is {}, but this version has the default rotary embedding only.",
                            type.dump()),
                "Use a model whose rope_type is \"default\".");
  if (!parameters.contains("rope_theta")) return;
  const json& inner = parameters["rope_theta"];
  if (!inner.is_number() || inner <= 0) {
    keys.refuse(fmt::format("rope_parameters.rope_theta is {}, but it must be a number above 0.", inner.dump()), "");
  } else if (!keys.missing("rope_theta") && keys.at("rope_theta") != inner) {
    keys.refuse(fmt::format("rope_theta is {}, but rope_parameters.rope_theta is {}.", keys.at("rope_theta").dump(),
                            inner.dump()),
                "Keep one of them, or make them equal.");
  } else {
    theta = inner.get<double>();
  }
}

void check_fit(Keys& keys, const ModelConfig& config, bool has_head_dim) {
  const int64_t heads = config.num_attention_heads;
  if (!has_head_dim && config.hidden_size % heads != 0) {
    keys.refuse(
        fmt::format(
            "hidden_size is {} and num_attention_heads is {}, which does not divide it, and there is no head_dim.",
            config.hidden_size, heads),
        "Give head_dim, or another number of heads.");
  } else if (config.head_dim % 2 != 0) {
    keys.refuse(fmt::format("head_dim is {}{}, but the rotary embedding turns pairs of elements, so it must be even.",
                            config.head_dim, has_head_dim ? "" : " (hidden_size / num_attention_heads)"),
                "Use an even head_dim.");
  }
  if (heads % config.num_key_value_heads != 0)
    keys.refuse(fmt::format("num_attention_heads is {}, but num_key_value_heads is {} and must divide it.", heads,
                            config.num_key_value_heads),
                "Use a divisor of num_attention_heads.");
  if (config.num_experts_per_tok > config.num_local_experts)
    keys.refuse(fmt::format("num_experts_per_tok is {}, but there are only {} experts (num_local_experts).",
                            config.num_experts_per_tok, config.num_local_experts),
                fmt::format("Use at most {}.", config.num_local_experts));
  if (config.router_jitter_noise >= 1)
    keys.refuse(fmt::format("router_jitter_noise is {}, but it must be less than 1.", config.router_jitter_noise), "");
}

}  // namespace

ModelConfig read_model_config(const std::filesystem::path& file_or_folder) {
  std::error_code unreadable;
  std::filesystem::path file = file_or_folder;
  if (std::filesystem::is_directory(file_or_folder, unreadable)) {
    file /= "config.json";
    if (!std::filesystem::exists(file, unreadable))
      throw UserError(mistake(fmt::format("the folder {} holds no config.json.", file_or_folder.string()),
                              "Give a Hugging Face config.json of a Mixtral, or a folder that holds one.", ""));
  }
  std::ifstream stream(file);
  if (!stream.is_open() || stream.peek() == std::ifstream::traits_type::eof())
    throw UserError(
        mistake(fmt::format("the model config {} {}.", file.string(),
                            stream.is_open() ? "is empty or cannot be read" : "does not exist or cannot be read"),
                "Give a Hugging Face config.json of a Mixtral, or a folder that holds one.", ""));
  return parse_model_config({std::istreambuf_iterator<char>(stream), {}}, file.string());
}

ModelConfig parse_model_config(const std::string& text, const std::string& origin) {
  const json content = parse_object(text, origin);
  Keys keys(content, origin);
  check_architecture(keys);
  if (!keys.mistakes().empty())
    refuse_if_any(keys.mistakes());  // of another architecture nothing else means what it says

  ModelConfig config;
  keys.read_required_size("vocab_size", config.vocab_size);
  keys.read_required_size("hidden_size", config.hidden_size);
  keys.read_required_size("intermediate_size", config.intermediate_size);
  keys.read_required_size("num_hidden_layers", config.num_hidden_layers);
  keys.read_required_size("num_attention_heads", config.num_attention_heads);
  keys.read_required_size("num_local_experts", config.num_local_experts);
  keys.read_required_size("num_experts_per_tok", config.num_experts_per_tok);
  if (!keys.absent("num_key_value_heads") && keys.missing("num_key_value_heads")) {
    config.num_key_value_heads = config.num_attention_heads;  // what null means to Transformers
  } else {
    keys.read_required_size("num_key_value_heads", config.num_key_value_heads);
  }
  config.head_dim = config.hidden_size / config.num_attention_heads;
  keys.read_size("head_dim", config.head_dim);
  keys.read_size("max_position_embeddings", config.max_position_embeddings);
  keys.read_number("rms_norm_eps", config.rms_norm_eps, 0, false);
  keys.read_number("initializer_range", config.initializer_range, 0, true);
  keys.read_number("router_aux_loss_coef", config.router_aux_loss_coef, 0, true);
  keys.read_number("router_jitter_noise", config.router_jitter_noise, 0, true);
  keys.read_flag("tie_word_embeddings", config.tie_word_embeddings);
  if (!keys.missing("sliding_window")) keys.read_size("sliding_window", config.sliding_window.emplace());
  keys.read_token("bos_token_id", config.bos_token_id);
  keys.read_tokens("eos_token_id", config.eos_token_ids);
  keys.read_token("pad_token_id", config.pad_token_id);
  read_rope(keys, config.rope_theta);
  refuse_if_any(keys.mistakes());
  check_fit(keys, config, !keys.missing("head_dim"));
  refuse_if_any(keys.mistakes());
  return config;
}

namespace {

json or_null(const std::optional<int64_t>& value) {
  return value ? json(*value) : json();
}

json eos_token_id(const ModelConfig& config) {
  if (config.eos_token_ids.empty()) return {};
  return config.eos_token_ids.size() == 1 ? json(config.eos_token_ids[0]) : json(config.eos_token_ids);
}

}  // namespace

std::string hugging_face_generation_config_json(const ModelConfig& config) {
  const json written = {{"bos_token_id", or_null(config.bos_token_id)},
                        {"eos_token_id", eos_token_id(config)},
                        {"pad_token_id", or_null(config.pad_token_id)}};
  return written.dump(2) + "\n";
}

std::string hugging_face_config_json(const ModelConfig& config, std::string_view dtype) {
  const json written = {
      {"architectures", {"MixtralForCausalLM"}},
      {"attention_dropout", 0.0},
      {"bos_token_id", or_null(config.bos_token_id)},
      {"dtype", dtype},
      {"eos_token_id", eos_token_id(config)},
      {"head_dim", config.head_dim},
      {"hidden_act", "silu"},
      {"hidden_size", config.hidden_size},
      {"initializer_range", config.initializer_range},
      {"intermediate_size", config.intermediate_size},
      {"max_position_embeddings", config.max_position_embeddings},
      {"model_type", "mixtral"},
      {"num_attention_heads", config.num_attention_heads},
      {"num_experts_per_tok", config.num_experts_per_tok},
      {"num_hidden_layers", config.num_hidden_layers},
      {"num_key_value_heads", config.num_key_value_heads},
      {"num_local_experts", config.num_local_experts},
      {"output_router_logits", false},
      {"pad_token_id", or_null(config.pad_token_id)},
      {"rms_norm_eps", config.rms_norm_eps},
      {"rope_parameters", {{"rope_theta", config.rope_theta}, {"rope_type", "default"}}},
      {"rope_theta", config.rope_theta},
      {"router_aux_loss_coef", config.router_aux_loss_coef},
      {"router_jitter_noise", config.router_jitter_noise},
      {"sliding_window", or_null(config.sliding_window)},
      {"tie_word_embeddings", config.tie_word_embeddings},
      {"torch_dtype", dtype},
      {"use_cache", true},
      {"vocab_size", config.vocab_size},
  };
  return written.dump(2) + "\n";
}

}  // namespace conclave
