// What one step reports: named values in the order they are written. Every sink (metrics.jsonl, TensorBoard) takes the
// same record, so that a number has one name everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace conclave {

// Of each layer of the model, by its number; nothing of a layer without experts (written as null).
using LayerNumbers = std::vector<std::optional<double>>;
using LayerRows = std::vector<std::optional<std::vector<double>>>;

// monostate: not known on this machine (written as null), which is not the same as a NaN that was computed.
using MetricValue =
    std::variant<std::monostate, int64_t, double, std::string, std::vector<double>, LayerNumbers, LayerRows>;
using MetricsRecord = std::vector<std::pair<std::string, MetricValue>>;

// The value of that name as a T. Null: the record has none, or of another type.
template <class T>
const T* find_metric(const MetricsRecord& record, std::string_view name) {
  for (const auto& [one, value] : record)
    if (one == name) return std::get_if<T>(&value);
  return nullptr;
}

}  // namespace conclave
