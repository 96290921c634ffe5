#include "model/rotary_options.h"

namespace conclave {
namespace {

RotaryScaling scaling_of(RotaryConfig::Scaling scaling) {
  switch (scaling) {
    case RotaryConfig::Scaling::linear:
      return RotaryScaling::linear;
    case RotaryConfig::Scaling::llama3:
      return RotaryScaling::llama3;
    case RotaryConfig::Scaling::yarn:
      return RotaryScaling::yarn;
    case RotaryConfig::Scaling::none:
      break;
  }
  return RotaryScaling::none;
}

}  // namespace

RotaryOptions rotary_options(const RotaryConfig& config) {
  return {.dims = config.dims,
          .theta = config.theta,
          .interleaved = config.interleaved,
          .scaling = scaling_of(config.scaling),
          .factor = config.factor,
          .original_positions = static_cast<double>(config.original_max_position_embeddings),
          .low_frequency_factor = config.low_freq_factor,
          .high_frequency_factor = config.high_freq_factor,
          .beta_fast = config.beta_fast,
          .beta_slow = config.beta_slow,
          .truncate = config.truncate,
          .attention_factor = config.cosine_factor()};
}

}  // namespace conclave
