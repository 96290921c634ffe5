// What a resumable checkpoint knows beside tensors, and what its tensors are called.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace conclave {

struct CheckpointState {
  int64_t step = 0;     // finished steps
  int64_t samples = 0;  // data position: samples consumed by them, over all ranks
  uint64_t seed = 0;
  std::map<std::string, std::string> extra;  // the trainer's own: UTF-8 text, kept as it is

  bool operator==(const CheckpointState&) const = default;
};

// Tensors in a checkpoint are called "<kind>/<parameter>".
inline constexpr std::string_view kind_parameter = "parameter";
inline constexpr std::string_view kind_exp_avg = "exp_avg";        // AdamW's first moment
inline constexpr std::string_view kind_exp_avg_sq = "exp_avg_sq";  // AdamW's second moment

inline std::string state_tensor_name(std::string_view kind, std::string_view parameter) {
  return std::string(kind) + "/" + std::string(parameter);
}

}  // namespace conclave
