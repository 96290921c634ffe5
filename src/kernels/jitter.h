// Router jitter (Fedus et al., "Switch Transformers", 2022): what router and experts see is multiplied by uniform
// noise.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace conclave {

struct Jitter {
  double strength = 0;  // factors lie in [1 - strength, 1 + strength)
  uint64_t seed = 0;
  uint64_t stream = 0;  // of random numbers
  int64_t sequence = 0;
  const std::vector<int64_t>& sample_of_B;  // names the draws, whatever the layout
};

// rows [B * sequence, H] times their noise, in place. The same bits every time.
void jitter_(at::Tensor rows_TH, const Jitter& jitter);

namespace reference {
void jitter_(at::Tensor rows_TH, const Jitter& jitter);
}  // namespace reference

}  // namespace conclave
