#include "config/memory_section.h"

#include <fmt/format.h>

#include "config/fields.h"
#include "config/key_rules.h"

namespace conclave {

void describe(MemoryConfig& memory, Fields& to) {
  to.section("memory", "what is kept, recomputed or moved to the host");
  to.field("memory.activation_checkpointing", memory.activation_checkpointing,
           OneOf<ActivationCheckpointing>{{{"none", ActivationCheckpointing::none},
                                           {"selective", ActivationCheckpointing::selective},
                                           {"full", ActivationCheckpointing::full}}},
           "full: only each layer's input is kept; selective: also routing and all-to-all results");
  to.field("memory.activation_offloading", memory.activation_offloading, Anything{},
           "kept layer inputs leave the device until shortly before their backward: CUDA to pinned host memory, CPU to "
           "a scratch file; needs activation_checkpointing");
  to.field("memory.activation_loading_horizon", memory.activation_loading_horizon, NumberRange{1, most_layers},
           "the most layers whose offloaded inputs are on the device at once");
  to.field("memory.offload_folder", memory.offload_folder, Anything{},
           "where a CPU run puts its scratch files, which vanish with the run; null: run.output_dir");
  to.field("memory.loss_chunk_tokens", memory.loss_chunk_tokens, size_of_at_least(1),
           "tokens whose logits are alive at once");
}

void check(const MemoryConfig& memory, KeyRules& rules) {
  rules.refuse_if(
      memory.activation_offloading && memory.activation_checkpointing == ActivationCheckpointing::none,
      {"memory.activation_offloading", "memory.activation_checkpointing"},
      "memory.activation_offloading is true, but memory.activation_checkpointing is none, and only the kept inputs of "
      "recomputed layers are offloaded.",
      "Set memory.activation_checkpointing to full or selective, or memory.activation_offloading to false.");
  rules.refuse_if(
      memory.offload_folder && !memory.activation_offloading, {"memory.offload_folder", "memory.activation_offloading"},
      fmt::format("memory.offload_folder is {}, but memory.activation_offloading is false, which does not use it.",
                  memory.offload_folder.value_or("").string()),
      "Set memory.offload_folder to null, or memory.activation_offloading to true.");
}

}  // namespace conclave
