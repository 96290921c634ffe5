#include "kernels/dropout.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/random.h"
#include "base/step_clock.h"
#include "kernels/check.h"

namespace conclave {
namespace {

// What the elements [first, first + rows * columns) of a stream are multiplied by. On paper nothing is drawn.
at::Tensor factors(int64_t rows, int64_t columns, uint64_t first, const Dropout& options, bool on_paper) {
  at::Tensor drawn = at::empty({rows, columns}, at::device(on_paper ? at::kMeta : at::kCPU).dtype(at::kFloat));
  if (!on_paper)
    fill_uniform({drawn.data_ptr<float>(), static_cast<size_t>(drawn.numel())}, options.seed, options.stream, first,
                 0.0f, 1.0f);
  const auto probability = static_cast<float>(options.probability);
  return drawn.copy_(drawn.ge(probability)).div_(1.0f - probability);
}

}  // namespace

// Sample by sample: what is drawn takes the room of one.
void dropout(at::Tensor y_RM, const at::Tensor& x_RM, const Dropout& options) {
  const KernelScope timed(Phase::kernels);
  constexpr auto op = "dropout";
  const int64_t rows = x_RM.size(0), columns = x_RM.size(1);
  const auto samples = static_cast<int64_t>(options.sample_of_B->size());
  check_rows(op, "x", x_RM);
  check_rows(op, "y", y_RM, rows, columns, x_RM.scalar_type());
  check_invariant(options.first_row + rows <= samples * options.sequence, "{}: {} rows from {} of {} samples", op, rows,
                  options.first_row, samples);
  for (int64_t done = 0; done < rows;) {
    const int64_t row = options.first_row + done, position = row % options.sequence;
    const int64_t count = std::min(rows - done, options.sequence - position);
    const int64_t sample = (*options.sample_of_B)[static_cast<size_t>(row / options.sequence)];
    const at::Tensor factor =
        factors(count, columns, static_cast<uint64_t>((sample * options.sequence + position) * columns), options,
                x_RM.is_meta());
    y_RM.narrow(0, done, count).copy_(x_RM.narrow(0, done, count) * factor.to(x_RM.options()));
    done += count;
  }
}

}  // namespace conclave
