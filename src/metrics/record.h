// What one step reports: named values in the order they are written. Every sink (metrics.jsonl, TensorBoard) takes the
// same record, so that a number has one name everywhere.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace conclave {

// monostate: not known on this machine (written as null), which is not the same as a NaN that was computed.
using MetricValue =
    std::variant<std::monostate, int64_t, double, std::string, std::vector<double>, std::vector<std::vector<double>>>;
using MetricsRecord = std::vector<std::pair<std::string, MetricValue>>;

// The value of that name as a T. Null: the record has none, or of another type.
template <class T>
const T* find_metric(const MetricsRecord& record, std::string_view name) {
  for (const auto& [one, value] : record)
    if (one == name) return std::get_if<T>(&value);
  return nullptr;
}

}  // namespace conclave
