#include "metrics/curve.h"

#include <algorithm>
#include <cmath>

namespace conclave {
namespace {

constexpr const char* blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
constexpr const char* letters[] = {"_", ".", "-", "~", "=", "+", "*", "#"};
constexpr int levels = 8;

}  // namespace

void Curve::add(double value) {
  if (!std::isfinite(value)) return;
  if (!means_.empty() && in_last_ < values_per_column_) {
    means_.back() += (value - means_.back()) / static_cast<double>(++in_last_);
    return;
  }
  if (means_.size() == columns_) {
    for (size_t pair = 0; pair < columns_ / 2; ++pair) means_[pair] = (means_[2 * pair] + means_[2 * pair + 1]) / 2;
    means_.resize(columns_ / 2);
    values_per_column_ *= 2;
  }
  means_.push_back(value);
  in_last_ = 1;
}

std::string Curve::drawn(bool has_unicode) const {
  if (means_.empty()) return "";
  const auto [least, most] = std::minmax_element(means_.begin(), means_.end());
  std::string text;
  for (const double mean : means_) {
    const double share = *most > *least ? (mean - *least) / (*most - *least) : 0;
    const int level = std::min(static_cast<int>(share * levels), levels - 1);
    text += (has_unicode ? blocks : letters)[level];
  }
  return text;
}

}  // namespace conclave
