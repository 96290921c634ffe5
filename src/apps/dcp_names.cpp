#include "apps/dcp_names.h"

#include <fmt/format.h>

#include "base/error.h"
#include "checkpoint/checkpoint_state.h"
#include "optim/adamw.h"

namespace conclave {
namespace {

constexpr std::string_view moments[] = {AdamW::exp_avg, AdamW::exp_avg_sq};
constexpr std::string_view final_norm = "model.norm.weight";  // each model has it once, whatever its size

// The names of Transformers 5 in memory: experts fused. A tied embedding's alternative is the head's name, which
// PyTorch stores beside its own.
const std::vector<DiskTensor>& form_of(const DiskNames& names) {
  const bool is_embedding = names.parameter == "embed_tokens";
  return names.alternative.empty() || is_embedding ? names.parts : names.alternative;
}

// What stands before `end` in the one name that ends so; none: no name does.
std::optional<std::string> prefix_of(const nlohmann::json& offered, const std::string& end, const std::string& folder) {
  std::vector<std::string> prefixes;
  for (const auto& [name, tensor] : offered.items()) {
    if (!name.ends_with(end)) continue;
    std::string prefix = name.substr(0, name.size() - end.size());
    if (prefix.empty() || prefix.ends_with('.')) prefixes.push_back(std::move(prefix));
  }
  if (prefixes.size() > 1)
    user_error("{} holds more than one model: \"{}{}\" and \"{}{}\". Save the one that is meant by itself.", folder,
               prefixes[0], end, prefixes[1], end);
  if (prefixes.empty()) return std::nullopt;
  return prefixes[0];
}

}  // namespace

std::string DcpTensor::name() const {
  return fmt::format("{}", fmt::join(path, "."));
}

std::vector<std::string> dcp_parameters(const DiskNames& names) {
  std::vector<std::string> parameters;
  for (const DiskTensor& part : form_of(names)) parameters.push_back(part.name);
  return parameters;
}

std::vector<DcpTensor> dcp_tensors(const std::vector<DiskNames>& names, bool tied) {
  std::vector<DcpTensor> tensors;
  for (const DiskNames& parameter : names)
    for (const DiskTensor& part : form_of(parameter))
      tensors.push_back({{"model", part.name}, part.shape, state_tensor_name(kind_parameter, parameter.parameter)});
  if (tied) tensors.push_back({{"model", "lm_head.weight"}, tensors.front().shape, tensors.front().source});
  for (std::string_view kind : moments)
    for (const DiskNames& parameter : names)
      for (const DiskTensor& part : form_of(parameter))
        tensors.push_back({{"optimizer", "state", part.name, std::string(kind)},
                           part.shape,
                           state_tensor_name(kind, parameter.parameter)});
  return tensors;
}

DcpPlaces find_places(const nlohmann::json& offered, const std::string& folder) {
  const auto model = prefix_of(offered, std::string(final_norm), folder);
  if (!model)
    user_error(
        "{} has no tensor whose name ends with \"{}\", so it holds no model of Transformers that this version trains.",
        folder, final_norm);
  return {*model, prefix_of(offered, fmt::format("{}.{}", final_norm, AdamW::exp_avg), folder)};
}

std::vector<DcpTensor> dcp_tensors_at(const DcpPlaces& places, const std::vector<DiskNames>& names,
                                      const nlohmann::json& offered) {
  std::vector<DcpTensor> tensors;
  const auto add = [&](const std::string& prefix, std::string_view suffix, std::string_view kind) {
    for (const DiskNames& parameter : names) {
      const auto called = [&](const DiskTensor& part) { return fmt::format("{}{}{}", prefix, part.name, suffix); };
      const bool apart = offered.contains(called(parameter.parts.front()));
      for (const DiskTensor& part : apart ? parameter.parts : form_of(parameter))
        tensors.push_back({{called(part)}, part.shape, state_tensor_name(kind, parameter.parameter)});
    }
  };
  add(places.model, "", kind_parameter);
  if (places.optimizer)
    for (std::string_view kind : moments) add(*places.optimizer, fmt::format(".{}", kind), kind);
  return tensors;
}

}  // namespace conclave
