// A parameter as a model declares it, before anything is allocated. Models declare, sharding allocates: neither knows
// the other.
#pragma once

#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

namespace conclave {

enum class ParameterKind {
  dense,   // sharded over the shard axis
  expert,  // dim 0 counts the experts: divided over the expert axis, then sharded over the expert-shard axis
};

struct ParameterDeclaration {
  std::string name;
  std::vector<int64_t> shape;  // global
  ParameterKind kind = ParameterKind::dense;
  float init_mean =
      0.0f;  // initial values are normal(init_mean, init_std), a pure function of (seed, name, element index)
  float init_std = 0.0f;    // 0: every element is init_mean
  bool decay = true;        // whether AdamW's weight decay applies
  bool trained = true;      // false: no gradient reaches it, it is carried along (a router's selection bias)
  float init_bound = 0.0f;  // above 0: initial values are uniform over (-init_bound, init_bound) instead
  bool frozen = false;      // training leaves it as it is: it has neither gradient nor optimizer state
  bool of_adapter = false;  // it lies beside the model's own parameters, and is no part of published models

  int64_t numel() const { return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()); }
};

// How the adapters of a unit compute (kernels/low_rank.h).
struct AdapterRule {
  double scale = 1;
  double dropout = 0;
  uint64_t seed = 0;  // of dropout
};

// What is gathered and freed together: the embedding, one decoder layer, or the head.
struct UnitDeclaration {
  std::string name;
  std::vector<ParameterDeclaration> parameters;
  AdapterRule adapter = {};
};

}  // namespace conclave
