// The angles of a rotary embedding, in the order of Transformers' own operations (modeling_rope_utils.py), so that they
// are its bits on a CPU.
#include <ATen/ATen.h>

#include <cmath>

#include "kernels/rotary.h"

namespace conclave::reference {

namespace {

// theta^(2j/dims), j < dims/2.
at::Tensor wavelengths(const RotaryOptions& options) {
  const auto fp32 = at::TensorOptions().dtype(at::kFloat);
  const at::Tensor exponent = at::arange(0, options.dims, 2, fp32) / static_cast<double>(options.dims);
  return at::pow(options.theta, exponent);
}

// A frequency that turns at least high_frequency_factor times within the original length stays, one that turns less
// than low_frequency_factor times is divided, and one between is a mixture of both.
at::Tensor llama3_frequencies(const at::Tensor& frequency, const RotaryOptions& options) {
  const double low_wavelength = options.original_positions / options.low_frequency_factor;
  const double high_wavelength = options.original_positions / options.high_frequency_factor;
  const at::Tensor wavelength = at::reciprocal(frequency) * (2 * M_PI);
  const at::Tensor divided = at::where(wavelength.gt(low_wavelength), frequency / options.factor, frequency);
  const at::Tensor share = (at::reciprocal(wavelength) * options.original_positions - options.low_frequency_factor) /
                           (options.high_frequency_factor - options.low_frequency_factor);
  const at::Tensor mixed = at::rsub(share, 1) * divided / options.factor + share * divided;
  const at::Tensor between =
      at::logical_not(at::logical_or(wavelength.lt(high_wavelength), wavelength.gt(low_wavelength)));
  return at::where(between, mixed, divided);
}

// The dim whose pair turns so often within the original length.
double dim_that_turns(double turns, const RotaryOptions& options) {
  return static_cast<double>(options.dims) * std::log(options.original_positions / (turns * 2 * M_PI)) /
         (2 * std::log(options.theta));
}

// Pairs up to that of beta_fast turns keep their frequency, those from beta_slow turns on are divided, and a ramp lies
// between.
at::Tensor yarn_frequencies(const at::Tensor& wavelength, const RotaryOptions& options) {
  double low = dim_that_turns(options.beta_fast, options), high = dim_that_turns(options.beta_slow, options);
  if (options.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(options.dims - 1));
  if (low == high) high += 0.001;
  const at::Tensor pair = at::arange(options.dims / 2, wavelength.options());
  const at::Tensor kept = at::rsub(at::clamp((pair - low) / (high - low), 0, 1), 1);
  const at::Tensor divided = at::reciprocal(wavelength * options.factor);
  return divided * at::rsub(kept, 1) + at::reciprocal(wavelength) * kept;
}

at::Tensor frequencies(const RotaryOptions& options) {
  const at::Tensor wavelength = wavelengths(options);
  switch (options.scaling) {
    case RotaryScaling::linear:
      return at::reciprocal(wavelength) / options.factor;
    case RotaryScaling::llama3:
      return llama3_frequencies(at::reciprocal(wavelength), options);
    case RotaryScaling::yarn:
      return yarn_frequencies(wavelength, options);
    case RotaryScaling::none:
      break;
  }
  return at::reciprocal(wavelength);
}

}  // namespace

RotaryTable rotary_table(int64_t sequence_length, const RotaryOptions& options, at::Device device) {
  const at::Tensor position = at::arange(sequence_length, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor angle = at::outer(position, frequencies(options));
  const auto scaled = [&](const at::Tensor& values) {
    return (options.attention_factor == 1.0 ? values : values * options.attention_factor).to(device);
  };
  return {scaled(at::cos(angle)), scaled(at::sin(angle)), options.interleaved};
}

}  // namespace conclave::reference
