#include "run/disk_names.h"

#include <fmt/core.h>

namespace conclave {
namespace {

DiskNames one(std::string parameter, std::string disk_name, std::vector<int64_t> shape) {
  return {std::move(parameter), shape, {{std::move(disk_name), shape}}, {}};
}

}  // namespace

std::vector<DiskNames> mixtral_disk_names(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size;
  const int64_t intermediate = config.intermediate_size;
  const int64_t experts = config.num_local_experts;
  const int64_t query_rows = config.num_attention_heads * config.head_dim;
  const int64_t key_rows = config.num_key_value_heads * config.head_dim;

  std::vector<DiskNames> names;
  names.push_back(one("embed_tokens", "model.embed_tokens.weight", {config.vocab_size, hidden}));
  if (config.tie_word_embeddings) names.back().alternative = {{"lm_head.weight", {config.vocab_size, hidden}}};
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const std::string ours = fmt::format("layers.{}", layer);
    const std::string disk = fmt::format("model.layers.{}", layer);
    names.push_back(one(ours + ".input_norm", disk + ".input_layernorm.weight", {hidden}));
    names.push_back({ours + ".attention.qkv",
                     {query_rows + 2 * key_rows, hidden},
                     {{disk + ".self_attn.q_proj.weight", {query_rows, hidden}},
                      {disk + ".self_attn.k_proj.weight", {key_rows, hidden}},
                      {disk + ".self_attn.v_proj.weight", {key_rows, hidden}}},
                     {}});
    names.push_back(one(ours + ".attention.output", disk + ".self_attn.o_proj.weight", {hidden, query_rows}));
    names.push_back(one(ours + ".post_attention_norm", disk + ".post_attention_layernorm.weight", {hidden}));

    DiskNames router = one(ours + ".router", disk + ".block_sparse_moe.gate.weight", {experts, hidden});
    router.alternative = {{disk + ".mlp.gate.weight", {experts, hidden}}};
    names.push_back(std::move(router));

    DiskNames gate_up{ours + ".experts.gate_up", {experts, 2 * intermediate, hidden}, {}, {}};
    DiskNames down{ours + ".experts.down", {experts, hidden, intermediate}, {}, {}};
    for (int64_t expert = 0; expert < experts; ++expert) {
      const std::string prefix = fmt::format("{}.block_sparse_moe.experts.{}", disk, expert);
      gate_up.parts.push_back({prefix + ".w1.weight", {intermediate, hidden}});
      gate_up.parts.push_back({prefix + ".w3.weight", {intermediate, hidden}});
      down.parts.push_back({prefix + ".w2.weight", {hidden, intermediate}});
    }
    gate_up.alternative = {{disk + ".mlp.experts.gate_up_proj", gate_up.shape}};
    down.alternative = {{disk + ".mlp.experts.down_proj", down.shape}};
    names.push_back(std::move(gate_up));
    names.push_back(std::move(down));
  }
  names.push_back(one("norm", "model.norm.weight", {hidden}));
  if (!config.tie_word_embeddings) names.push_back(one("lm_head", "lm_head.weight", {config.vocab_size, hidden}));
  return names;
}

std::vector<DiskNames> dense_disk_names(const ModelConfig& config) {
  std::vector<DiskNames> names = mixtral_disk_names(config);
  std::erase_if(names, [](const DiskNames& each) { return each.parameter.ends_with(".router"); });
  for (DiskNames& each : names) {
    const size_t experts = each.parameter.find(".experts.");
    if (experts == std::string::npos) continue;
    const std::string mlp = fmt::format("model.{}.mlp", each.parameter.substr(0, experts));
    const std::vector<int64_t> up = {config.intermediate_size, config.hidden_size};
    const std::vector<int64_t> down = {config.hidden_size, config.intermediate_size};
    each.parts.clear();
    each.alternative.clear();
    for (int64_t expert = 0; expert < config.num_local_experts; ++expert) {
      if (each.parameter.ends_with(".down")) {
        each.parts.push_back({mlp + ".down_proj.weight", down});
      } else {
        each.parts.push_back({mlp + ".gate_proj.weight", up});
        each.parts.push_back({mlp + ".up_proj.weight", up});
      }
    }
  }
  return names;
}

HuggingFaceExportOptions hugging_face_export_options(const ModelConfig& config, at::ScalarType dtype) {
  HuggingFaceExportOptions options;
  options.dtype = dtype;
  options.config_json = hugging_face_config_json(config, dtype == at::kBFloat16 ? "bfloat16"
                                                         : dtype == at::kHalf   ? "float16"
                                                                                : "float32");
  options.generation_config_json = hugging_face_generation_config_json(config);
  options.vocabulary = config.vocab_size;
  return options;
}

}  // namespace conclave
