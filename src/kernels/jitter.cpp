#include "kernels/jitter.h"

#include <ATen/ATen.h>

#include "base/random.h"
#include "kernels/kernels.h"

namespace conclave {

void jitter_(at::Tensor rows_TH, const Jitter& jitter) {
  kernels_of(rows_TH.device().type()).jitter_(std::move(rows_TH), jitter);
}

void reference::jitter_(at::Tensor rows_TH, const Jitter& jitter) {
  const auto batch = static_cast<int64_t>(jitter.sample_of_B.size());
  const int64_t elements = jitter.sequence * rows_TH.size(1);  // of one sample
  at::Tensor noise = at::empty({batch, elements}, at::kFloat);
  for (int64_t b = 0; b < batch; ++b)
    fill_uniform({noise[b].data_ptr<float>(), static_cast<size_t>(elements)}, jitter.seed, jitter.stream,
                 static_cast<uint64_t>(jitter.sample_of_B[b]) * elements, static_cast<float>(1.0 - jitter.strength),
                 static_cast<float>(1.0 + jitter.strength));
  rows_TH.mul_(noise.view(rows_TH.sizes()).to(rows_TH.options()));
}

}  // namespace conclave
