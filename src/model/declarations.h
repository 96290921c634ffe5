// The kinds of parameters that blocks declare.
#pragma once

#include "base/parameter_declaration.h"
#include "config/model_config.h"

namespace conclave {

inline ParameterDeclaration matrix(const ModelConfig& config, std::string name, std::vector<int64_t> shape,
                                   ParameterKind kind = ParameterKind::dense) {
  return {std::move(name), std::move(shape), kind, 0.0f, static_cast<float>(config.initializer_range), /*decay=*/true};
}

// Begins as ones.
inline ParameterDeclaration norm_weight(std::string name, int64_t width) {
  return {std::move(name), {width}, ParameterKind::dense, 1.0f, 0.0f, /*decay=*/false};
}

// Begins as zeros.
inline ParameterDeclaration bias(std::string name, std::vector<int64_t> shape,
                                 ParameterKind kind = ParameterKind::dense) {
  return {std::move(name), std::move(shape), kind, 0.0f, 0.0f, /*decay=*/false};
}

}  // namespace conclave
