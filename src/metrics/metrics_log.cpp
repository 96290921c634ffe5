#include "metrics/metrics_log.h"

#include <cerrno>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>

#include "base/log.h"

namespace conclave {
namespace {

using Json = nlohmann::ordered_json;

Json number(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

struct ToJson {
  Json operator()(std::monostate) const { return nullptr; }
  Json operator()(int64_t value) const { return value; }
  Json operator()(double value) const { return number(value); }
  Json operator()(const std::string& value) const { return value; }
  Json operator()(const std::vector<double>& values) const {
    Json array = Json::array();
    for (double value : values) array.push_back(number(value));
    return array;
  }
  template <class Value>
  Json operator()(const std::vector<std::optional<Value>>& of_layers) const {
    Json array = Json::array();
    for (const auto& of_layer : of_layers) array.push_back(of_layer ? (*this)(*of_layer) : Json());
    return array;
  }
};

// The step of a line, or nothing when the line is not a whole record.
std::optional<int64_t> step_of(const std::string& line) {
  const Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) return std::nullopt;
  const auto step = record.find("step");
  if (step == record.end() || !step->is_number_integer()) return std::nullopt;
  return step->get<int64_t>();
}

// Bytes of `file` up to and with the last record to keep: steps ascend up to the resumed one. A damaged line among them
// takes no other with it.
uintmax_t length_to_keep(const std::filesystem::path& file, int64_t resumed_step) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw std::system_error(errno, std::generic_category(), "cannot read " + file.string());
  uintmax_t keep = 0;
  int64_t previous = -1;
  std::string line;
  uintmax_t end = 0;
  while (std::getline(in, line) && !in.eof()) {  // end of file inside a line: it was torn
    end += line.size() + 1;
    const std::optional<int64_t> step = step_of(line);
    if (!step || *step > resumed_step || *step <= previous) continue;
    previous = *step;
    keep = end;
  }
  return keep;
}

const std::filesystem::path& cut_after(const std::filesystem::path& file, int64_t resumed_step) {
  if (!std::filesystem::exists(file)) return file;
  const uintmax_t size = std::filesystem::file_size(file);
  const uintmax_t keep = resumed_step > 0 ? length_to_keep(file, resumed_step) : 0;
  if (keep < size) {
    spdlog::info("{}: {} bytes of records after step {} are dropped; the run writes them anew", file.string(),
                 size - keep, resumed_step);
    std::filesystem::resize_file(file, keep);
  }
  return file;
}

}  // namespace

std::string metrics_line(int64_t step, const MetricsRecord& record) {
  Json line;
  line["step"] = step;
  for (const auto& [name, value] : record) line[name] = std::visit(ToJson{}, value);
  // Text that is not UTF-8 (a path of the user's, say) is made valid rather than refused: a metric must not end the
  // run.
  return line.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

MetricsLog::MetricsLog(const std::filesystem::path& file, int64_t resumed_step)
    : file_(cut_after(file, resumed_step)) {}

void MetricsLog::write(int64_t step, const MetricsRecord& record) {
  file_.append(metrics_line(step, record));
}

}  // namespace conclave
