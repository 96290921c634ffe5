// What adapters are called: modules as published models and PEFT have them, names on disk as PEFT 0.21 writes them
// (`target_modules` for dense layers, `target_parameters` for experts and the router).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "config/model_config.h"

namespace conclave {

// A dense layer that may have an adapter.
struct AdaptableModule {
  std::string module;  // q_proj
  std::string target;  // as AdapterShape::targets has it
  bool is_mlp = false;
};
// In the order of a layer. Only models without experts have dense MLPs among them: elsewhere PEFT takes gate_proj,
// up_proj and down_proj for the experts'.
std::vector<AdaptableModule> adaptable_modules(const ModelConfig& config);

// A tensor of an adapter's file.
struct AdapterTensor {
  std::string parameter;
  std::vector<int64_t> shape;
  std::string on_disk;
  std::vector<int64_t> disk_shape;
  // B of experts: [E,N,P] here, [N, P * E] there with the expert as the last index. All others lie alike.
  bool expert_is_last = false;

  // Of a whole tensor.
  at::Tensor to_disk(const at::Tensor& whole) const;
  at::Tensor from_disk(const at::Tensor& stored) const;
};
// All that is trained of a model with an adapter: adapters, and a router that is trained whole.
std::vector<AdapterTensor> adapter_tensors(const ModelConfig& config);

// The module of Transformers' router within a layer: mlp.gate.
std::string router_module(const ModelConfig& config);

// The matrix that an adapter's A and B lie beside.
struct AdaptedPart {
  std::string a, b;       // names of the two parameters
  std::string parameter;  // the matrix's, or that of which it is rows
  int64_t first = 0;      // of its rows, of each expert if it has experts
  int64_t rows = 0;
  bool input_major = false;  // each expert's matrix is transposed
};
std::vector<AdaptedPart> adapted_parts(const ModelConfig& config);

}  // namespace conclave
