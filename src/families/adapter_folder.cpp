#include "families/adapter_folder.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/text_file.h"
#include "checkpoint/safetensors_writer.h"
#include "families/hugging_face_keys.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr const char* gate_up_parameter = "mlp.experts.gate_up_proj";
constexpr const char* down_parameter = "mlp.experts.down_proj";

// Keys of PEFT whose other values change what is computed or which parameters there are.
constexpr const char* unsupported[] = {"use_dora",          "use_qalora",          "use_bdlora",
                                       "lora_bias",         "fan_in_fan_out",      "rank_pattern",
                                       "alpha_pattern",     "layers_to_transform", "layers_pattern",
                                       "layer_replication", "exclude_modules",     "trainable_token_indices",
                                       "arrow_config",      "velora_config",       "kasa_config",
                                       "monteclora_config", "megatron_config",     "alora_invocation_tokens"};

HuggingFaceKeys keys_of(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / adapter_config_file_name;
  if (!is_folder(folder) || !has_name(file))
    user_error("{} is no adapter's folder: it has no {}.", folder.string(), adapter_config_file_name);
  return HuggingFaceKeys({read_text_file(file, 1'000'000), file.string()});
}

std::vector<std::string> names_in(HuggingFaceKeys& keys, const char* key) {
  if (keys.missing(key)) return {};
  const json& value = keys.at(key);
  const auto is_text = [](const json& name) { return name.is_string(); };
  if (!value.is_array() || !std::all_of(value.begin(), value.end(), is_text)) {
    keys.refuse(fmt::format("{} is {}, but it must be a list of names.", key, value.dump()),
                "PEFT writes the names it found when it saves an adapter.");
    return {};
  }
  return value.get<std::vector<std::string>>();
}

void read_modules(HuggingFaceKeys& keys, const ModelConfig& model, AdapterConfig& adapter) {
  const std::vector<AdaptableModule> known = adaptable_modules(model);
  adapter.targets = {};
  for (const std::string& name : names_in(keys, "target_modules")) {
    const bool is_known =
        std::any_of(known.begin(), known.end(), [&](const AdaptableModule& module) { return module.module == name; });
    if (is_known)
      adapter.targets.names.push_back(name);
    else
      keys.refuse(fmt::format("target_modules has {}, beside which this version has no adapter.", name), "");
  }
  std::sort(adapter.targets.names.begin(), adapter.targets.names.end());
}

void read_parameters(HuggingFaceKeys& keys, const ModelConfig& model, AdapterConfig& adapter) {
  bool gate_up = false, down = false;
  const std::string router = model.mixture() == nullptr ? "" : router_module(model);
  const auto is_called = [](const std::string& name, const std::string& whole) {
    return name == whole || whole.ends_with("." + name);
  };
  for (const std::string& name : names_in(keys, "target_parameters")) {
    if (model.mixture() != nullptr && is_called(name, gate_up_parameter))
      gate_up = true;
    else if (model.mixture() != nullptr && is_called(name, down_parameter))
      down = true;
    else if (!router.empty() && is_called(name, router + ".weight"))
      adapter.router = AdapterRouter::adapted;
    else
      keys.refuse(fmt::format("target_parameters has {}, beside which this version has no adapter.", name), "");
  }
  if (gate_up != down)
    keys.refuse("target_parameters has one of the experts' two matrices, and here both or neither have adapters.", "");
  adapter.experts = gate_up;
  for (const std::string& name : names_in(keys, "modules_to_save")) {
    if (!router.empty() && is_called(name, router))
      adapter.router = AdapterRouter::trained;
    else
      keys.refuse(fmt::format("modules_to_save has {}, and of the model itself only the router is trained beside an "
                              "adapter.",
                              name),
                  "");
  }
}

// Some ways to begin change the model, and the adapter fits the changed one only.
void check_initialization(HuggingFaceKeys& keys) {
  if (keys.missing("init_lora_weights")) return;
  const json& value = keys.at("init_lora_weights");
  if (value.is_boolean() || value == "gaussian" || value == "eva" || value == "orthogonal" || value == "lora_ga")
    return;
  keys.refuse(
      fmt::format("init_lora_weights is {}, which changes the model itself when an adapter begins.", value.dump()),
      "Save the adapter with path_initial_model_for_weight_conversion, which makes it a plain LoRA.");
}

std::vector<std::string> modules_of(const ModelConfig& model) {
  std::vector<std::string> modules;
  for (const AdaptableModule& module : adaptable_modules(model))
    if (model.adapter->targets.contains(module.target)) modules.push_back(module.module);
  return modules;
}

std::string config_json(const ModelConfig& model, const AdapterConfig& adapter, const std::string& base) {
  const double alpha = adapter.alpha.value_or(2.0 * static_cast<double>(adapter.rank));
  json parameters = json::array();
  if (model.adapter->router) parameters.push_back(router_module(model) + ".weight");
  if (model.adapter->experts) {
    parameters.push_back(gate_up_parameter);
    parameters.push_back(down_parameter);
  }
  const bool trains_router = adapter.router == AdapterRouter::trained;
  const std::string router = trains_router ? router_module(model) : "";
  json written = {{"peft_type", "LORA"},
                  {"task_type", "CAUSAL_LM"},
                  {"base_model_name_or_path", base.empty() ? json() : json(base)},
                  {"r", adapter.rank},
                  {"lora_alpha", alpha},
                  {"lora_dropout", adapter.dropout},
                  {"bias", "none"},
                  {"fan_in_fan_out", false},
                  {"inference_mode", true},
                  {"init_lora_weights", true},
                  {"modules_to_save", trains_router ? json({router.substr(router.rfind('.') + 1)}) : json()},
                  {"target_modules", modules_of(model)},
                  {"target_parameters", parameters.empty() ? json() : parameters},
                  {"use_dora", false},
                  {"use_rslora", adapter.use_rslora}};
  if (alpha == std::floor(alpha)) written["lora_alpha"] = static_cast<int64_t>(alpha);
  return written.dump(2) + "\n";
}

}  // namespace

AdapterConfig read_adapter_config(const std::filesystem::path& folder, const ModelConfig& model) {
  HuggingFaceKeys keys = keys_of(folder);
  keys.only("peft_type", "LORA", false, "this version has LoRA alone");
  keys.only("bias", "none", true, "no bias of the model is trained beside an adapter");
  for (const char* key : unsupported)
    if (!keys.missing(key) && !is_nothing(keys.at(key)))
      keys.refuse(fmt::format("{} is {}, which this version does not compute.", key, keys.at(key).dump()), "");
  AdapterConfig adapter;
  double alpha = 8;
  keys.read_required_size("r", adapter.rank);
  keys.read_number("lora_alpha", alpha, 0, false);
  adapter.alpha = alpha;
  keys.read_number("lora_dropout", adapter.dropout, 0, true);
  keys.read_flag("use_rslora", adapter.use_rslora);
  check_initialization(keys);
  read_modules(keys, model, adapter);
  read_parameters(keys, model, adapter);
  keys.finish();
  return adapter;
}

std::string base_of_adapter(const std::filesystem::path& folder) {
  const HuggingFaceKeys keys = keys_of(folder);
  if (keys.missing("base_model_name_or_path") || !keys.at("base_model_name_or_path").is_string()) return {};
  return keys.at("base_model_name_or_path").get<std::string>();
}

AdapterReader::AdapterReader(const std::filesystem::path& folder, const ModelConfig& model)
    : tensors_(adapter_tensors(model)), file_(folder / adapter_model_file_name) {
  const std::string path = file_.file().path().string();
  std::set<std::string_view> known;
  for (const AdapterTensor& tensor : tensors_) {
    const StoredTensor* stored = file_.find(tensor.on_disk);
    if (stored == nullptr) user_error("{} lacks the tensor {}.", path, tensor.on_disk);
    if (stored->shape != tensor.disk_shape)
      user_error("{} in {} has the shape {}, but the adapter makes it {}.", tensor.on_disk, path,
                 text_of(stored->shape), text_of(tensor.disk_shape));
    if (!converts_to_fp32(stored->dtype))
      user_error("{} in {} is {}, and an adapter has floating-point numbers.", tensor.on_disk, path,
                 name_of(stored->dtype));
    known.insert(tensor.on_disk);
  }
  for (const StoredTensor& stored : file_.tensors())
    if (!known.contains(stored.name))
      user_error("{} has the tensor {}, which the adapter in its {} does not have.", path, stored.name,
                 adapter_config_file_name);
}

at::Tensor AdapterReader::read(const AdapterTensor& tensor) const {
  at::Tensor stored = at::empty(tensor.disk_shape, at::kFloat);
  file_.read(tensor.on_disk, 0, stored.view({-1}));
  return tensor.from_disk(stored);
}

void write_adapter(const OutputFolder& folder, const ModelConfig& model, const AdapterConfig& adapter,
                   const std::string& base, const std::function<at::Tensor(const AdapterTensor&)>& whole) {
  folder.create();
  try {
    std::vector<std::pair<std::string, at::Tensor>> tensors;
    for (const AdapterTensor& tensor : adapter_tensors(model))
      tensors.emplace_back(tensor.on_disk, tensor.to_disk(whole(tensor)));
    write_safetensors(folder.aside() / adapter_model_file_name, tensors);
    write_file_atomically(folder.aside() / adapter_config_file_name, config_json(model, adapter, base));
    folder.publish();
  } catch (...) {
    folder.discard();
    throw;
  }
}

bool is_adapter_file(std::string_view name) {
  return name == adapter_config_file_name || name == adapter_model_file_name || name == "README.md";
}

}  // namespace conclave
