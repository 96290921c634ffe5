// A curve of one line: all the values so far, in at most so many columns. When there are more values than columns,
// neighbours are averaged, so that it costs no more memory in a long run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace conclave {

class Curve {
 public:
  explicit Curve(size_t columns) : columns_(columns) {}

  // A value that is not finite is left out.
  void add(double value);
  bool is_empty() const { return means_.empty(); }
  // One letter a column, from the lowest to the highest of its values; without Unicode of ASCII.
  std::string drawn(bool has_unicode) const;

 private:
  size_t columns_;
  int64_t values_per_column_ = 1;
  int64_t in_last_ = 0;  // values that the last column has
  std::vector<double> means_;
};

}  // namespace conclave
