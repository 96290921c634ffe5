#include "families/rotary_keys.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace conclave {
namespace {

using nlohmann::json;

struct KindOfScaling {
  RotaryConfig::Scaling scaling;
  const char* name;
};
constexpr KindOfScaling kinds[] = {{RotaryConfig::Scaling::none, "default"},
                                   {RotaryConfig::Scaling::linear, "linear"},
                                   {RotaryConfig::Scaling::llama3, "llama3"},
                                   {RotaryConfig::Scaling::yarn, "yarn"}};

const char* name_of(RotaryConfig::Scaling scaling) {
  return std::find_if(std::begin(kinds), std::end(kinds), [&](const auto& each) { return each.scaling == scaling; })
      ->name;
}

// The numbers of the group, one by one.
class Numbers {
 public:
  Numbers(HuggingFaceKeys& keys, std::string group, const json& parameters)
      : keys_(keys), group_(std::move(group)), left_(parameters) {
    for (const char* known : {"rope_theta", "rope_type", "type"}) left_.erase(known);
  }

  template <class T>
  void take(const char* key, T& value) {
    const auto found = left_.find(key);
    if (found == left_.end()) return;
    if (!found->is_null()) read(key, *found, value);
    left_.erase(key);
  }
  void take_required(const char* key, double& value) {
    if (!left_.contains(key) || left_[key].is_null())
      keys_.refuse(fmt::format("{}.{} is missing, and this kind of scaling needs it.", group_, key), "");
    take(key, value);
  }
  void refuse_the_rest(const char* kind) {
    for (const auto& [key, value] : left_.items())
      if (!value.is_null())
        keys_.refuse(
            fmt::format("{}.{} is {}, but the {} rotary embedding does not use it.", group_, key, value.dump(), kind),
            "Remove it if the model was trained without, or use a model whose rotary embedding is not scaled.");
  }

 private:
  void read(const char* key, const json& found, double& value) {
    if (found.is_number() && found > 0)
      value = found.get<double>();
    else
      keys_.refuse(fmt::format("{}.{} is {}, but it must be a number above 0.", group_, key, found.dump()), "");
  }
  void read(const char* key, const json& found, std::optional<double>& value) { read(key, found, value.emplace()); }
  void read(const char* key, const json& found, int64_t& value) {
    if (found.is_number_integer() && found > 0)
      value = found.get<int64_t>();
    else
      keys_.refuse(fmt::format("{}.{} is {}, but it must be a whole number above 0.", group_, key, found.dump()), "");
  }
  void read(const char* key, const json& found, bool& value) {
    if (found.is_boolean())
      value = found.get<bool>();
    else
      keys_.refuse(fmt::format("{}.{} is {}, but it must be true or false.", group_, key, found.dump()), "");
  }

  HuggingFaceKeys& keys_;
  std::string group_;
  json left_;
};

// The base that `parameters`, the group `name`, or the key rope_theta gives.
void read_rope_theta(HuggingFaceKeys& keys, const char* name, const json& parameters, double& theta) {
  const bool inner = parameters.contains("rope_theta");
  if (keys.absent("rope_theta") && !inner) return;
  const json& found = inner ? parameters["rope_theta"] : keys.at("rope_theta");
  if (found.is_number() && found > 0) {
    theta = found.get<double>();
  } else {
    keys.refuse(fmt::format("{}rope_theta is {}, but it must be a number above 0.",
                            inner ? fmt::format("{}.", name) : "", found.dump()),
                "");
  }
}

// The group goes before the key beside it.
void read_turned_part(HuggingFaceKeys& keys, std::optional<double> turned_part, Numbers& numbers,
                      RotaryConfig& rotary) {
  double part = turned_part.value_or(1);
  if (turned_part)
    keys.read_number("partial_rotary_factor", part, 0, false);
  else
    keys.only("partial_rotary_factor", 1, true, "models of this family turn whole heads");
  numbers.take("partial_rotary_factor", part);
  if (part > 1 || (!turned_part && part != 1)) {
    keys.refuse(
        fmt::format("partial_rotary_factor is {}, but {}.", part,
                    turned_part ? "no more than a whole head can turn" : "models of this family turn whole heads"),
        "");
    return;
  }
  if (part != 1) rotary.dims = static_cast<int64_t>(static_cast<double>(rotary.dims) * part);
}

void read_scaling(Numbers& numbers, const ModelConfig& config, RotaryConfig& rotary) {
  if (rotary.scaling == RotaryConfig::Scaling::none) return;
  numbers.take_required("factor", rotary.factor);
  if (rotary.scaling == RotaryConfig::Scaling::linear) return;
  rotary.original_max_position_embeddings = config.max_position_embeddings;
  numbers.take("original_max_position_embeddings", rotary.original_max_position_embeddings);
  if (rotary.scaling == RotaryConfig::Scaling::llama3) {
    numbers.take_required("low_freq_factor", rotary.low_freq_factor);
    numbers.take_required("high_freq_factor", rotary.high_freq_factor);
    return;
  }
  numbers.take("attention_factor", rotary.attention_factor);
  numbers.take("beta_fast", rotary.beta_fast);
  numbers.take("beta_slow", rotary.beta_slow);
  numbers.take("truncate", rotary.truncate);
  numbers.take("mscale", rotary.mscale);
  numbers.take("mscale_all_dim", rotary.mscale_all_dim);
}

}  // namespace

// As PreTrainedConfig.convert_rope_params_to_dict of Transformers 5: rope_scaling, unless it says nothing, replaces
// rope_parameters; a base in the group goes before the key rope_theta, which goes before the class's default; rope_type
// goes before type, its older name.
void read_rope(HuggingFaceKeys& keys, std::optional<double> turned_part, ModelConfig& config) {
  const bool has_parameters = !keys.missing("rope_parameters");
  const bool has_scaling = !keys.missing("rope_scaling") && !is_nothing(keys.at("rope_scaling"));
  const char* name = has_scaling ? "rope_scaling" : "rope_parameters";
  const json parameters = has_scaling || has_parameters ? keys.at(name) : json::object();
  if (!parameters.is_object()) {
    keys.refuse(fmt::format("{} is {}, but it must be an object.", name, parameters.dump()), "");
    return;
  }
  RotaryConfig& rotary = config.rotary;
  read_rope_theta(keys, name, parameters, rotary.theta);
  const char* type_key = parameters.contains("rope_type") ? "rope_type" : "type";
  const json type = parameters.value(type_key, json("default"));
  const auto kind =
      std::find_if(std::begin(kinds), std::end(kinds), [&](const auto& each) { return type == each.name; });
  if (kind == std::end(kinds)) {
    keys.refuse(fmt::format("{}.{} is {}, but this version has the rotary embeddings \"default\", \"linear\", "
                            "\"llama3\" and \"yarn\" only.",
                            name, type_key, type.dump()),
                "Use a model whose rope_type is one of these.");
    return;
  }
  rotary.scaling = kind->scaling;
  Numbers numbers(keys, name, parameters);
  read_turned_part(keys, turned_part, numbers, rotary);
  read_scaling(numbers, config, rotary);
  numbers.refuse_the_rest(kind->name);
}

json written_rope(const RotaryConfig& rotary) {
  json written = {{"rope_theta", rotary.theta}, {"rope_type", name_of(rotary.scaling)}};
  if (rotary.scaling == RotaryConfig::Scaling::none) return written;
  written["factor"] = rotary.factor;
  if (rotary.scaling == RotaryConfig::Scaling::linear) return written;
  written["original_max_position_embeddings"] = rotary.original_max_position_embeddings;
  if (rotary.scaling == RotaryConfig::Scaling::llama3) {
    written["low_freq_factor"] = rotary.low_freq_factor;
    written["high_freq_factor"] = rotary.high_freq_factor;
    return written;
  }
  written["beta_fast"] = rotary.beta_fast;
  written["beta_slow"] = rotary.beta_slow;
  written["truncate"] = rotary.truncate;
  if (rotary.attention_factor) written["attention_factor"] = *rotary.attention_factor;
  if (rotary.mscale) written["mscale"] = *rotary.mscale;
  if (rotary.mscale_all_dim) written["mscale_all_dim"] = *rotary.mscale_all_dim;
  return written;
}

}  // namespace conclave
