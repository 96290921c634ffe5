// A model to begin with: a family's own architecture in one of a few sizes. What the family is, it says itself
// (families/family.h); sizes say how wide and deep, and what training of that size needs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/model_config.h"

namespace conclave {

struct StarterSize {
  std::string_view name;
  std::string_view meant_for;
  int64_t layers;
  int64_t hidden;
  int64_t heads;
  int64_t key_value_heads;  // divides heads
  int64_t head_dim;
  int64_t intermediate;  // of a dense layer
  int64_t experts;       // of families with mixtures
  int64_t expert_intermediate;
  int64_t top_k;
  int64_t sequence_length;
  int64_t micro_batch_size;
  double lr;
};

// The smallest first.
const std::vector<StarterSize>& starter_sizes();
std::vector<std::string> names_of_sizes();
const StarterSize& starter_size(std::string_view name);

// `eos`: the token that ends a document of the data, if there is one.
ModelConfig starter_model(std::string_view model_type, const StarterSize& size, int64_t vocab_size,
                          std::optional<int64_t> eos);

}  // namespace conclave
