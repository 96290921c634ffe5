#include "config/mixtral_parameters.h"

#include <fmt/core.h>

namespace conclave {
namespace {

ParameterDeclaration matrix(const ModelConfig& config, std::string name, std::vector<int64_t> shape,
                            ParameterKind kind = ParameterKind::dense) {
  return {std::move(name), std::move(shape), kind, 0.0f, static_cast<float>(config.initializer_range), /*decay=*/true};
}

ParameterDeclaration norm(const ModelConfig& config, std::string name) {
  return {std::move(name), {config.hidden_size}, ParameterKind::dense, 1.0f, 0.0f, /*decay=*/false};
}

}  // namespace

std::vector<UnitDeclaration> declare_mixtral(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t intermediate = config.intermediate_size;
  const int64_t experts = config.num_local_experts;
  const int64_t query_rows = config.num_attention_heads * config.head_dim;
  const int64_t key_rows = config.num_key_value_heads * config.head_dim;

  std::vector<UnitDeclaration> units;
  units.push_back({"embedding", {matrix(config, "embed_tokens", {config.vocab_size, hidden})}});
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string name = fmt::format("layers.{}", layer);
    units.push_back(
        {name,
         {norm(config, name + ".input_norm"),
          matrix(config, name + ".attention.qkv", {query_rows + 2 * key_rows, hidden}),
          matrix(config, name + ".attention.output", {hidden, query_rows}), norm(config, name + ".post_attention_norm"),
          matrix(config, name + ".router", {experts, hidden}),
          matrix(config, name + ".experts.gate_up", {experts, 2 * intermediate, hidden}, ParameterKind::expert),
          matrix(config, name + ".experts.down", {experts, hidden, intermediate}, ParameterKind::expert)}});
  }
  units.push_back({"head", {norm(config, "norm")}});
  if (!config.tie_word_embeddings)
    units.back().parameters.push_back(matrix(config, "lm_head", {config.vocab_size, hidden}));
  return units;
}

int64_t count_parameters(const std::vector<UnitDeclaration>& units) {
  int64_t sum = 0;
  for (const UnitDeclaration& unit : units)
    for (const ParameterDeclaration& parameter : unit.parameters) sum += parameter.numel();
  return sum;
}

int64_t count_parameters_per_token(const std::vector<UnitDeclaration>& units, const ModelConfig& config) {
  int64_t sum = 0;
  for (const UnitDeclaration& unit : units)
    for (const ParameterDeclaration& parameter : unit.parameters)
      sum += parameter.kind == ParameterKind::dense
                 ? parameter.numel()
                 : parameter.numel() / config.num_local_experts * config.num_experts_per_tok;
  return sum;
}

}  // namespace conclave
