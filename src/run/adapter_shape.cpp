#include "run/adapter_shape.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "families/adapter_names.h"
#include "model/parameters.h"

namespace conclave {
namespace {

[[noreturn]] void refuse(const std::string& problem, const std::string& remedy, const std::string& place) {
  throw UserError(mistake(problem, remedy, place));
}

double scale_of(const AdapterConfig& adapter) {
  const auto rank = static_cast<double>(adapter.rank);
  return adapter.alpha.value_or(2 * rank) / (adapter.use_rslora ? std::sqrt(rank) : rank);
}

// What one of the names in adapter.targets stands for.
std::vector<std::string> targets_of(const std::string& name, const ModelConfig& model, const std::string& place) {
  std::vector<std::string> targets, modules;
  for (const AdaptableModule& module : adaptable_modules(model)) {
    modules.push_back(module.module);
    if (name == module.module || name == (module.is_mlp ? "mlp" : "attention")) targets.push_back(module.target);
  }
  if (!targets.empty()) return targets;
  const bool of_experts =
      model.mixture() != nullptr && (name == "mlp" || name == "gate_proj" || name == "up_proj" || name == "down_proj");
  refuse(fmt::format("adapter.targets has {}, {}.", name,
                     of_experts ? "but in a model with experts PEFT takes it for the experts' matrices, and has no "
                                  "place for adapters of other MLPs"
                                : "which is no dense layer of the model"),
         fmt::format("{}Use attention{}, or some of {}.", of_experts ? "adapter.experts is for the experts. " : "",
                     model.mixture() == nullptr ? ", mlp" : "", fmt::join(modules, ", ")),
         place);
}

// What an adapter's folder has no place for, or what its base would not have.
void check_combinations(const Job& job, const ModelConfig& model) {
  const auto refuse_if = [&](bool given, const char* key, const std::string& problem, const std::string& remedy) {
    if (given)
      refuse(fmt::format("adapter.rank is {}, but {}.", job.adapter.rank, problem), remedy, job.origins.of(key));
  };
  refuse_if(!job.train.freeze.empty(), "train.freeze", "train.freeze is given, and beside an adapter all is frozen",
            "Leave train.freeze out; adapter.router says what becomes of the router.");
  refuse_if(job.model.upcycle_from.has_value(), "model.upcycle_from",
            "model.upcycle_from is given, and the model that the adapter is for would be nowhere",
            "Upcycle first: run without an adapter, export, and give that folder as model.init_from.");
  refuse_if(job.model.resize_vocabulary.has_value(), "model.resize_vocabulary",
            "model.resize_vocabulary is given, and the model that the adapter is for would be nowhere",
            "Resize first: run without an adapter, export, and give that folder as model.init_from.");
  refuse_if(job.moe.moe_load_balancing == LoadBalancing::bias, "moe.moe_load_balancing",
            "moe.moe_load_balancing is bias, whose bias of each expert has no place in an adapter's folder",
            "Use aux_loss or none.");
  refuse_if(model.mixture() == nullptr && job.adapter.experts.value_or(false), "adapter.experts",
            "adapter.experts is true, and the model has no experts", "Leave adapter.experts out.");
  refuse_if(model.mixture() == nullptr && job.adapter.router != AdapterRouter::frozen, "adapter.router",
            "adapter.router is not frozen, and the model has no router", "Leave adapter.router out.");
}

}  // namespace

AdapterShape adapter_shape(const AdapterConfig& adapter, const ModelConfig& model, uint64_t seed,
                           const std::string& place) {
  AdapterShape shape;
  shape.rank = adapter.rank;
  shape.scale = scale_of(adapter);
  shape.dropout = adapter.dropout;
  shape.seed = seed;
  shape.experts = adapter.experts.value_or(model.mixture() != nullptr);
  shape.router = adapter.router == AdapterRouter::adapted;
  for (const std::string& name : adapter.targets.names)
    for (const std::string& target : targets_of(name, model, place)) shape.targets.insert(target);
  if (shape.targets.empty() && !shape.experts && !shape.router)
    refuse("adapter.targets is [] and the experts have no adapters either: nothing would be trained.",
           "Give adapter.targets, for example attention.", place);
  if (shape.dropout > 0 && (shape.experts || shape.router))
    refuse(fmt::format("adapter.dropout is {}, but adapters of experts and of the router have none, in PEFT and here.",
                       shape.dropout),
           "Set adapter.dropout to 0, or adapter.experts to false and adapter.router to frozen.", place);
  return shape;
}

std::optional<AdapterShape> adapter_shape(const Job& job, const ModelConfig& model) {
  if (!job.adapter.exists()) return std::nullopt;
  check_combinations(job, model);
  const char* key = job.adapter.dropout > 0 ? "adapter.dropout" : "adapter.targets";
  return adapter_shape(job.adapter, model, static_cast<uint64_t>(job.run.seed), job.origins.of(key));
}

std::set<std::string> frozen_beside(const AdapterConfig& adapter, const ModelConfig& model) {
  std::set<std::string> frozen;
  for (const UnitDeclaration& unit : declare_model(model))
    for (const ParameterDeclaration& parameter : unit.parameters) {
      const bool of_router = parameter.name.ends_with(".router") || parameter.name.ends_with(".router_bias");
      if (!parameter.of_adapter && !(of_router && adapter.router == AdapterRouter::trained))
        frozen.insert(parameter.name);
    }
  return frozen;
}

ModelConfig with_adapter(ModelConfig model, const AdapterConfig& adapter) {
  model.frozen = frozen_beside(adapter, model);
  model.adapter = adapter_shape(adapter, model, /*seed=*/0);
  return model;
}

}  // namespace conclave
