#include "model/parameters.h"

#include "model/decoder_layer.h"
#include "model/embedding.h"
#include "model/head.h"

namespace conclave {

std::vector<UnitDeclaration> declare_model(const ModelConfig& config) {
  std::vector<UnitDeclaration> units;
  for (std::string& name : unit_names(config)) units.push_back({std::move(name), {}});
  Embedding::declare(config, units.front());
  for (int64_t layer = 0; layer < config.layer_count(); ++layer) DecoderLayer::declare(config, layer, units[layer + 1]);
  Head::declare(config, units.back());
  for (UnitDeclaration& unit : units)
    for (ParameterDeclaration& parameter : unit.parameters) parameter.frozen = config.frozen.contains(parameter.name);
  return units;
}

int64_t count_parameters(const std::vector<UnitDeclaration>& units) {
  int64_t sum = 0;
  for (const UnitDeclaration& unit : units)
    for (const ParameterDeclaration& parameter : unit.parameters)
      if (parameter.trained) sum += parameter.numel();
  return sum;
}

int64_t count_trained_parameters(const std::vector<UnitDeclaration>& units) {
  int64_t sum = 0;
  for (const UnitDeclaration& unit : units)
    for (const ParameterDeclaration& parameter : unit.parameters)
      if (parameter.trained && !parameter.frozen) sum += parameter.numel();
  return sum;
}

int64_t count_parameters_per_token(const std::vector<UnitDeclaration>& units, const ModelConfig& config) {
  int64_t sum = 0;
  for (const UnitDeclaration& unit : units)
    for (const ParameterDeclaration& parameter : unit.parameters)
      if (parameter.trained)
        sum += parameter.kind == ParameterKind::dense ? parameter.numel()
                                                      : parameter.numel() / config.experts() * config.top_k();
  return sum;
}

}  // namespace conclave
