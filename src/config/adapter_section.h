// The section `adapter` of the job file. Low-rank matrices beside the model's own, which alone are trained.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

#include "config/name_list.h"

namespace conclave {

class Fields;
class KeyRules;

enum class AdapterRouter { frozen, trained, adapted };

struct AdapterConfig {
  int64_t rank = 0;             // 0: there is no adapter
  std::optional<double> alpha;  // null: twice the rank
  double dropout = 0;
  NameList targets{{"attention"}};  // attention, mlp, or modules as published checkpoints call them
  std::optional<bool> experts;      // null: of a model that has some
  AdapterRouter router = AdapterRouter::frozen;
  bool use_rslora = false;
  bool use_dora = false;
  std::optional<std::filesystem::path> init_from;  // a folder of PEFT to start from

  bool exists() const { return rank > 0; }
};

void describe(AdapterConfig& adapter, Fields& to);
void check(const AdapterConfig& adapter, KeyRules& rules);

}  // namespace conclave
