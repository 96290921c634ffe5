// The parameters of a Mixtral, unit by unit, under Conclave's own names. Projections that are always used together are
// one parameter: query, key and value rows in `qkv`, gate and up rows of each expert in `gate_up`.
#pragma once

#include <vector>

#include "base/gradient.h"
#include "base/parameter_declaration.h"
#include "config/model_config.h"

namespace conclave {

// Units in forward order: the embedding, the decoder layers, the head.
std::vector<UnitDeclaration> declare_mixtral(const ModelConfig& config);

// A decoder layer's tensors in declared order: weights, or gradients.
template <class T>
struct LayerSlots {
  T input_norm_H;
  T qkv_MH;     // M = (heads + 2 kv_heads) * head_dim
  T output_HN;  // N = heads * head_dim
  T post_attention_norm_H;
  T router_EH;
  T gate_up_LJH;  // J = 2 I
  T down_LHI;

  explicit LayerSlots(const std::vector<T>& tensors)
      : input_norm_H(tensors.at(0)),
        qkv_MH(tensors.at(1)),
        output_HN(tensors.at(2)),
        post_attention_norm_H(tensors.at(3)),
        router_EH(tensors.at(4)),
        gate_up_LJH(tensors.at(5)),
        down_LHI(tensors.at(6)) {}
};
using LayerWeights = LayerSlots<at::Tensor>;
using LayerGradients = LayerSlots<Gradient>;

}  // namespace conclave
