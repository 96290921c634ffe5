#include "families/adapter_names.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "families/family.h"
#include "model/parameters.h"

namespace conclave {
namespace {

constexpr std::string_view prefix = "base_model.model.model.";
constexpr std::string_view suffix_a = ".lora_a", suffix_b = ".lora_b";

// Where a module is within a layer. Experts: PEFT nests the wrappers of the two parameters of one module.
struct Place {
  std::string_view target;
  std::string_view module;
};
constexpr Place places[] = {
    {"attention.qkv.q", "self_attn.q_proj"},
    {"attention.qkv.k", "self_attn.k_proj"},
    {"attention.qkv.v", "self_attn.v_proj"},
    {"attention.q", "self_attn.q_proj"},
    {"attention.q_a", "self_attn.q_a_proj"},
    {"attention.q_b", "self_attn.q_b_proj"},
    {"attention.kv_b", "self_attn.kv_b_proj"},
    {"attention.kv_a", "self_attn.kv_a_proj_with_mqa"},
    {"attention.output", "self_attn.o_proj"},
    {"mlp.gate_up.gate", "mlp.gate_proj"},
    {"mlp.gate_up.up", "mlp.up_proj"},
    {"mlp.down", "mlp.down_proj"},
    {"experts.gate_up", "mlp.experts.base_layer"},
    {"experts.down", "mlp.experts"},
};

std::string module_of(std::string_view target, const ModelConfig& config) {
  for (const Place& place : places)
    if (place.target == target) return std::string(place.module);
  check_invariant(target == "router", "there is an adapter beside {}", target);
  return router_module(config);
}

std::vector<int64_t> disk_shape_of(const ParameterDeclaration& declared, bool is_a) {
  const std::vector<int64_t>& shape = declared.shape;
  if (shape.size() == 2) return shape;
  return is_a ? std::vector{shape[0] * shape[1], shape[2]} : std::vector{shape[1], shape[2] * shape[0]};
}

// f(declaration, its name within the layer, the layer's name).
template <class F>
void for_each_of_layers(const ModelConfig& config, const F& f) {
  const std::vector<UnitDeclaration> units = declare_model(config);
  for (size_t unit = 1; unit + 1 < units.size(); ++unit)
    for (const ParameterDeclaration& declared : units[unit].parameters)
      f(declared, declared.name.substr(units[unit].name.size() + 1), units[unit].name);
}

}  // namespace

std::string router_module(const ModelConfig& config) {
  constexpr std::string_view weight = ".weight";
  for (const DiskNames& names : disk_names(config)) {
    if (!names.parameter.ends_with(".router")) continue;
    const std::string& name = (names.alternative.empty() ? names.parts : names.alternative).front().name;
    const size_t begin = std::string("model.").size() + names.parameter.size() - std::string("router").size();
    return name.substr(begin, name.size() - begin - weight.size());
  }
  check_invariant(false, "a model without experts has no router");
  return {};
}

std::vector<AdaptableModule> adaptable_modules(const ModelConfig& config) {
  ModelConfig all = config;
  all.adapter.emplace();
  all.adapter->rank = 1;
  for (const Place& place : places)
    if (config.mixture() == nullptr || place.target.starts_with("attention."))
      all.adapter->targets.insert(std::string(place.target));
  std::vector<AdaptableModule> found;
  for_each_of_layers(all, [&](const ParameterDeclaration&, const std::string& name, const std::string&) {
    if (!name.ends_with(suffix_a)) return;
    const std::string target = name.substr(0, name.size() - suffix_a.size()), module = module_of(target, config);
    const auto same = [&](const AdaptableModule& other) { return other.target == target; };
    if (std::none_of(found.begin(), found.end(), same))
      found.push_back({module.substr(module.find('.') + 1), target, module.starts_with("mlp.")});
  });
  return found;
}

std::vector<AdapterTensor> adapter_tensors(const ModelConfig& config) {
  std::vector<AdapterTensor> tensors;
  for_each_of_layers(config,
                     [&](const ParameterDeclaration& declared, const std::string& name, const std::string& layer) {
                       if (declared.frozen) return;
                       AdapterTensor& tensor = tensors.emplace_back();
                       tensor.parameter = declared.name;
                       tensor.shape = tensor.disk_shape = declared.shape;
                       std::string on_disk;
                       if (declared.of_adapter) {
                         const bool is_a = name.ends_with(suffix_a);
                         const std::string module = module_of(name.substr(0, name.size() - suffix_a.size()), config);
                         on_disk = fmt::format("{}.lora_{}.weight", module, is_a ? "A" : "B");
                         tensor.disk_shape = disk_shape_of(declared, is_a);
                         tensor.expert_is_last = !is_a && declared.kind == ParameterKind::expert;
                       } else {
                         const std::string_view what = name == "router" ? "weight" : "bias";
                         on_disk = fmt::format("{}.{}", router_module(config), what);
                       }
                       tensor.on_disk = fmt::format("{}{}.{}", prefix, layer, on_disk);
                     });
  return tensors;
}

at::Tensor AdapterTensor::to_disk(const at::Tensor& whole) const {
  const at::Tensor shaped = whole.view(shape);
  return (expert_is_last ? shaped.permute({1, 2, 0}) : shaped).reshape(disk_shape).contiguous();
}

at::Tensor AdapterTensor::from_disk(const at::Tensor& stored) const {
  if (!expert_is_last) return stored.reshape(shape);
  return stored.reshape({shape[1], shape[2], shape[0]}).permute({2, 0, 1}).contiguous();
}

std::vector<AdaptedPart> adapted_parts(const ModelConfig& config) {
  std::vector<AdaptedPart> parts;
  const bool input_major = config.mixture() != nullptr && config.mixture()->input_major;
  for_each_of_layers(
      config, [&](const ParameterDeclaration& declared, const std::string& name, const std::string& layer) {
        if (!declared.of_adapter || !name.ends_with(suffix_b)) return;
        const std::string target = name.substr(0, name.size() - suffix_b.size());
        AdaptedPart& part = parts.emplace_back();
        part.b = declared.name;
        part.a = fmt::format("{}.{}{}", layer, target, suffix_a);
        part.rows = declared.shape[declared.shape.size() - 2];
        part.input_major = declared.kind == ParameterKind::expert && input_major;
        const int64_t number = std::stoll(layer.substr(layer.find('.') + 1));
        const AttentionConfig& attention = config.layers.at(static_cast<size_t>(number)).attention;
        const bool is_part = target.starts_with("attention.qkv.") || target.starts_with("mlp.gate_up.");
        part.parameter = fmt::format("{}.{}", layer, is_part ? target.substr(0, target.rfind('.')) : target);
        if (target == "attention.qkv.k") part.first = attention.query_width();
        if (target == "attention.qkv.v") part.first = attention.query_width() + attention.key_width();
        if (target == "mlp.gate_up.up") part.first = part.rows;
      });
  return parts;
}

}  // namespace conclave
