// The section `memory` of the job file. What is kept, recomputed or moved to the host.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace conclave {

class Fields;
class KeyRules;

enum class ActivationCheckpointing { none, selective, full };

struct MemoryConfig {
  ActivationCheckpointing activation_checkpointing = ActivationCheckpointing::none;
  bool activation_offloading =
      false;  // kept layer inputs go to host memory (CPU run: to a scratch file); needs checkpointing
  int64_t activation_loading_horizon = 2;  // the most layers whose offloaded inputs are on the device at once
  std::optional<std::filesystem::path> offload_folder;  // of a CPU run's scratch files; default: run.output_dir
  int64_t loss_chunk_tokens = 1024;                     // tokens whose logits are alive at once
};

void describe(MemoryConfig& memory, Fields& to);
void check(const MemoryConfig& memory, KeyRules& rules);

}  // namespace conclave
