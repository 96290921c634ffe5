// What parameters are called in Hugging Face folders, as far as families agree: embedding, attention, norms, head and
// dense MLPs have one name everywhere, mixtures have a few.
#pragma once

#include <string>
#include <vector>

#include "checkpoint/tensor_slice.h"
#include "config/model_config.h"

namespace conclave {

// Within a layer. Other forms are read, too: experts fused as Transformers 5 has them in memory (mlp.gate,
// mlp.experts.gate_up_proj, mlp.experts.down_proj).
struct MixtureNames {
  std::string router = "mlp.gate";  // of its bias and the selection bias, too
  std::string experts = "mlp.experts";
  std::string gate = "gate_proj";
  std::string up = "up_proj";
  std::string down = "down_proj";
  bool fused = false;  // all experts' matrices are one tensor, `experts`.gate_up_proj and `experts`.down_proj
  std::string shared = "mlp.shared_experts";
  std::string shared_gate = "mlp.shared_expert_gate";
};

// Of every parameter that the model's blocks declare, in that order; adapters' are not among them.
std::vector<DiskNames> parameter_names(const ModelConfig& config, const MixtureNames& mixture);

}  // namespace conclave
