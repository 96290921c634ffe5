#include "run/resized_vocabulary.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "base/random.h"

namespace conclave {
namespace {

constexpr double covariance_scale = 1e-9;             // Transformers' own
constexpr int64_t block_elements = int64_t{1} << 20;  // of the old matrix in memory

// The old matrix, read block by block, each row as fp32.
class OldRows {
 public:
  OldRows(const HuggingFaceReader& reader, std::string parameter, int64_t rows, int64_t width)
      : reader_(reader),
        parameter_(std::move(parameter)),
        rows_(rows),
        width_(width),
        per_block_(std::clamp<int64_t>(block_elements / width, 1, rows)),
        memory_(at::empty({per_block_ * width}, at::kFloat)) {}

  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }

  // Calls `use(first row, values)` with every block, in order.
  template <class Use>
  void for_each_block(const Use& use) const {
    for (int64_t first = 0; first < rows_; first += per_block_) {
      const int64_t count = std::min(per_block_, rows_ - first);
      const at::Tensor block = memory_.narrow(0, 0, count * width_);
      reader_.load({parameter_, {rows_, width_}, first * width_, block});
      use(first, std::span(block.const_data_ptr<float>(), static_cast<size_t>(count * width_)));
    }
  }

 private:
  const HuggingFaceReader& reader_;
  std::string parameter_;
  int64_t rows_;
  int64_t width_;
  int64_t per_block_;
  at::Tensor memory_;
};

std::vector<double> mean_row(const OldRows& old) {
  std::vector<double> mean(static_cast<size_t>(old.width()), 0.0);
  old.for_each_block([&](int64_t, std::span<const float> values) {
    for (size_t i = 0; i < values.size(); ++i) mean[i % mean.size()] += values[i];
  });
  for (double& each : mean) each /= static_cast<double>(old.rows());
  return mean;
}

// For new rows first, first + 1, ...: the sum over old rows i of z(row, i) (old(i) - mean), whose covariance is the old
// rows' times their number. [count x width]
std::vector<double> random_sums(const OldRows& old, const std::vector<double>& mean, int64_t first, int64_t count,
                                uint64_t seed, uint64_t stream) {
  const int64_t width = old.width();
  std::vector<double> sums(static_cast<size_t>(count * width), 0.0);
  old.for_each_block([&](int64_t first_old, std::span<const float> values) {
    const int64_t in_block = static_cast<int64_t>(values.size()) / width;
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> normal(static_cast<size_t>(in_block));
      for (int64_t row = begin; row < end; ++row) {
        fill_normal(normal, seed, stream, static_cast<uint64_t>((first + row) * old.rows() + first_old), 0.0f, 1.0f);
        double* sum = sums.data() + row * width;
        for (int64_t i = 0; i < in_block; ++i) {
          const double weight = normal[static_cast<size_t>(i)];
          const float* value = values.data() + i * width;
          for (int64_t c = 0; c < width; ++c) sum[c] += weight * (value[c] - mean[static_cast<size_t>(c)]);
        }
      }
    });
  });
  return sums;
}

bool has_a_row_per_token(std::string_view parameter) {
  return parameter == "embed_tokens" || parameter == "lm_head";
}

}  // namespace

void load_slice(const HuggingFaceReader& reader, const TensorSlice& slice, int64_t rows, uint64_t seed) {
  if (!has_a_row_per_token(slice.name)) return reader.load(slice);
  const int64_t width = slice.shape.at(1);
  const int64_t old_elements = std::min(rows, slice.shape.at(0)) * width;
  const int64_t kept = std::clamp<int64_t>(old_elements - slice.begin, 0, slice.data.numel());
  if (kept > 0) reader.load({slice.name, {rows, width}, slice.begin, slice.data.narrow(0, 0, kept)});
  if (kept == slice.data.numel()) return;

  const OldRows old(reader, slice.name, rows, width);
  const std::vector<double> mean = mean_row(old);
  const int64_t begin = slice.begin + kept;  // in elements of the parameter; the end likewise
  const int64_t end = slice.begin + slice.data.numel();
  const int64_t first = begin / width;
  const int64_t count = (end + width - 1) / width - first;
  std::vector<double> sums;  // empty: rows are the mean
  if (rows > width)
    sums = random_sums(old, mean, first - rows, count, seed, random_stream(slice.name + " resized vocabulary"));
  const double scale = std::sqrt(covariance_scale / static_cast<double>(rows));
  const at::Tensor drawn = at::empty({end - begin}, at::kFloat);
  auto* out = drawn.data_ptr<float>();
  for (int64_t element = begin; element < end; ++element) {
    const double deviation = sums.empty() ? 0.0 : scale * sums[static_cast<size_t>(element - first * width)];
    out[element - begin] = static_cast<float>(mean[static_cast<size_t>(element % width)] + deviation);
  }
  slice.data.narrow(0, kept, end - begin).copy_(drawn);
}

}  // namespace conclave
