#include "families/parameter_names.h"

#include <fmt/core.h>

#include "base/error.h"
#include "families/family.h"
#include "model/parameters.h"

namespace conclave {
namespace {

// A parameter that is one tensor on disk.
struct OneName {
  std::string_view parameter;
  std::string_view on_disk;
};
constexpr OneName of_model[] = {
    {"embed_tokens", "model.embed_tokens.weight"}, {"norm", "model.norm.weight"}, {"lm_head", "lm_head.weight"}};
constexpr OneName of_layer[] = {{"input_norm", "input_layernorm.weight"},
                                {"attention.q_norm", "self_attn.q_norm.weight"},
                                {"attention.k_norm", "self_attn.k_norm.weight"},
                                {"attention.sinks", "self_attn.sinks"},
                                {"attention.q", "self_attn.q_proj.weight"},
                                {"attention.q_a", "self_attn.q_a_proj.weight"},
                                {"attention.q_a_bias", "self_attn.q_a_proj.bias"},
                                {"attention.q_a_norm", "self_attn.q_a_layernorm.weight"},
                                {"attention.q_b", "self_attn.q_b_proj.weight"},
                                {"attention.kv_a", "self_attn.kv_a_proj_with_mqa.weight"},
                                {"attention.kv_a_bias", "self_attn.kv_a_proj_with_mqa.bias"},
                                {"attention.kv_a_norm", "self_attn.kv_a_layernorm.weight"},
                                {"attention.kv_b", "self_attn.kv_b_proj.weight"},
                                {"attention.output", "self_attn.o_proj.weight"},
                                {"attention.output_bias", "self_attn.o_proj.bias"},
                                {"post_attention_norm", "post_attention_layernorm.weight"},
                                {"mlp.down", "mlp.down_proj.weight"}};

class LayerNaming {
 public:
  LayerNaming(const LayerConfig& layer, const MixtureNames& mixture, std::string disk, int64_t hidden)
      : layer_(layer), mixture_(mixture), disk_(std::move(disk)), hidden_(hidden) {}

  // `part`: the parameter's name after the layer's.
  void name(const std::string& part, DiskNames& names) const {
    for (const OneName& one : of_layer)
      if (one.parameter == part) return add(names, std::string(one.on_disk), names.shape);
    if (part == "attention.qkv" || part == "attention.qkv_bias") return name_qkv(names);
    if (part == "mlp.gate_up") return name_halves(names, "mlp.gate_proj.weight", "mlp.up_proj.weight");
    if (part == "router") return name_router(names);
    if (part == "router_bias") return add(names, mixture_.router + ".bias", names.shape);
    if (part == "selection_bias") return add(names, mixture_.router + ".e_score_correction_bias", names.shape);
    if (part == "experts.gate_up_bias") return add(names, mixture_.experts + ".gate_up_proj_bias", names.shape);
    if (part == "experts.down_bias") return add(names, mixture_.experts + ".down_proj_bias", names.shape);
    if (part == "shared.gate_up")
      return name_halves(names, mixture_.shared + ".gate_proj.weight", mixture_.shared + ".up_proj.weight");
    if (part == "shared.down") return add(names, mixture_.shared + ".down_proj.weight", names.shape);
    if (part == "shared.gate") return add(names, mixture_.shared_gate + ".weight", names.shape);
    if (part == "experts.gate_up") return name_gate_up(names);
    if (part == "experts.down") return name_down(names);
    check_invariant(false, "{} has no name on disk", names.parameter);
  }

 private:
  void add(DiskNames& names, const std::string& name, std::vector<int64_t> shape) const {
    names.parts.push_back({fmt::format("{}.{}", disk_, name), std::move(shape)});
  }
  void add_alternative(DiskNames& names, const std::string& name) const {
    const std::string alternative = fmt::format("{}.{}", disk_, name);
    if (names.parts.front().name != alternative) names.alternative = {{alternative, names.shape}};
  }
  void name_qkv(DiskNames& names) const {
    const AttentionConfig& attention = layer_.attention;
    const bool is_bias = names.shape.size() == 1;
    const auto add_rows = [&](char projection, int64_t rows) {
      add(names, fmt::format("self_attn.{}_proj.{}", projection, is_bias ? "bias" : "weight"),
          is_bias ? std::vector<int64_t>{rows} : std::vector<int64_t>{rows, hidden_});
    };
    add_rows('q', attention.query_width());
    add_rows('k', attention.key_width());
    add_rows('v', attention.value_width());
  }
  void name_halves(DiskNames& names, const std::string& first, const std::string& second) const {
    const std::vector<int64_t> half = {names.shape.at(0) / 2, names.shape.at(1)};
    add(names, first, half);
    add(names, second, half);
  }
  void name_router(DiskNames& names) const {
    add(names, mixture_.router + ".weight", names.shape);
    add_alternative(names, "mlp.gate.weight");
  }
  void name_gate_up(DiskNames& names) const {
    if (mixture_.fused) return add(names, mixture_.experts + ".gate_up_proj", names.shape);
    const std::vector<int64_t> matrix = {layer_.mixture()->intermediate, hidden_};
    for (int64_t expert = 0; expert < layer_.mixture()->experts; ++expert) {
      add(names, fmt::format("{}.{}.{}.weight", mixture_.experts, expert, mixture_.gate), matrix);
      add(names, fmt::format("{}.{}.{}.weight", mixture_.experts, expert, mixture_.up), matrix);
    }
    add_alternative(names, "mlp.experts.gate_up_proj");
  }
  void name_down(DiskNames& names) const {
    if (mixture_.fused) return add(names, mixture_.experts + ".down_proj", names.shape);
    const std::vector<int64_t> matrix = {hidden_, layer_.mixture()->intermediate};
    for (int64_t expert = 0; expert < layer_.mixture()->experts; ++expert)
      add(names, fmt::format("{}.{}.{}.weight", mixture_.experts, expert, mixture_.down), matrix);
    add_alternative(names, "mlp.experts.down_proj");
  }

  const LayerConfig& layer_;
  const MixtureNames& mixture_;
  std::string disk_;
  int64_t hidden_;
};

DiskNames of_model_itself(const ParameterDeclaration& parameter, bool tied) {
  for (const OneName& one : of_model) {
    if (one.parameter != parameter.name) continue;
    DiskNames names{parameter.name, parameter.shape, {{std::string(one.on_disk), parameter.shape}}, {}};
    if (tied && parameter.name == "embed_tokens") names.alternative = {{"lm_head.weight", parameter.shape}};
    return names;
  }
  check_invariant(false, "{} has no name on disk", parameter.name);
  return {};
}

}  // namespace

std::vector<DiskNames> parameter_names(const ModelConfig& config, const MixtureNames& mixture) {
  const std::vector<UnitDeclaration> units = declare_model(config);
  std::vector<DiskNames> all;
  for (size_t unit = 0; unit < units.size(); ++unit) {
    const bool is_layer = unit > 0 && unit + 1 < units.size();
    for (const ParameterDeclaration& parameter : units[unit].parameters) {
      if (parameter.of_adapter) continue;
      if (!is_layer) {
        all.push_back(of_model_itself(parameter, config.tie_word_embeddings));
        continue;
      }
      const LayerNaming naming(config.layers[unit - 1], mixture, fmt::format("model.{}", units[unit].name),
                               config.hidden_size);
      DiskNames& names = all.emplace_back(DiskNames{parameter.name, parameter.shape, {}, {}});
      naming.name(parameter.name.substr(units[unit].name.size() + 1), names);
    }
  }
  return all;
}

}  // namespace conclave
