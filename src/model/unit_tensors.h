// A unit's tensors, and where a block finds its own among them: by name, which is looked up once.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
#include "base/gradient.h"
#include "base/parameter_declaration.h"

namespace conclave {

// In the order of the unit's declaration.
using UnitWeights = std::vector<at::Tensor>;
using UnitGradients = std::vector<Gradient>;

class ParameterSlot {
 public:
  ParameterSlot(const UnitDeclaration& unit, const std::string& name) {
    while (index_ < unit.parameters.size() && unit.parameters[index_].name != name) ++index_;
    check_invariant(index_ < unit.parameters.size(), "unit {} declares no parameter {}", unit.name, name);
  }

  const ParameterDeclaration& declared(const UnitDeclaration& unit) const { return unit.parameters[index_]; }
  const at::Tensor& operator()(const UnitWeights& weights) const { return weights[index_]; }
  Gradient& operator()(UnitGradients& gradients) const { return gradients[index_]; }

 private:
  size_t index_ = 0;
};

}  // namespace conclave
