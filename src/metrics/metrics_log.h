// metrics.jsonl: one JSON object a step, one line each, appended as the run goes. The file has each step at most once,
// in ascending order, also across stop and resume, and every line of it is whole.
//
// Numbers are written so that reading them gives the same bits. JSON has no NaN and no infinity: they are the strings
// "NaN", "Infinity" and
// "-Infinity" (which Python's float() and JavaScript's Number() take as they are); null says that a value is not known.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "metrics/append_file.h"
#include "metrics/record.h"

namespace conclave {

// {"step":3,"loss":...} and a line feed. Keys in the order of `record`.
std::string metrics_line(int64_t step, const MetricsRecord& record);

class MetricsLog {
 public:
  // Opens or creates `file`, whose folder must exist, and cuts it after the last whole record with step <=
  // `resumed_step` (0: a run from the start, which empties the file). Throws std::system_error when the file cannot be
  // read, cut or opened.
  MetricsLog(const std::filesystem::path& file, int64_t resumed_step);

  // A full disk costs the record, never the run (see append_file.h).
  void write(int64_t step, const MetricsRecord& record);

 private:
  AppendFile file_;
};

}  // namespace conclave
