// A decoder layer's tensors by name, in the order in which config/mixtral_parameters.cpp declares them.
#pragma once

#include <vector>

#include "base/gradient.h"

namespace conclave {

// Weights, or gradients.
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
