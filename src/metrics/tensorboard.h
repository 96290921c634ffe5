// TensorBoard event files: the same numbers as metrics.jsonl in single precision, under the same names behind a
// group's: train/loss, validation/loss, speed/tokens_per_second, experts/..., memory/..., checkpoints/..., run/.... A
// number list `x` becomes `x/0`, `x/1`, ..., a list of lists `x/0/0`, `x/0/1`, ...; of texts only the samples
// (`sample/0`) are there; unknown values are left out.
//
// A file is a sequence of TFRecords (length, masked CRC-32C of the length, payload, masked CRC-32C of the payload),
// each an Event message.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "metrics/append_file.h"
#include "metrics/record.h"

namespace conclave {

// CRC-32C (Castagnoli polynomial), as RFC 3720 defines it.
uint32_t crc32c(std::string_view bytes);

// One TFRecord. Format: tensorflow/core/lib/io/record_writer.h; the mask: tensorflow/core/lib/hash/crc32c.h.
std::string tfrecord(std::string_view payload);

class TensorBoardLog {
 public:
  // Makes `folder` and a new event file in it. A run that goes on after `resumed_step` > 0 says so in the file, and
  // TensorBoard then hides what earlier files say of later steps. Throws std::system_error or
  // std::filesystem::filesystem_error when the file cannot be made.
  TensorBoardLog(const std::filesystem::path& folder, int64_t resumed_step);

  // A full disk costs the record, never the run (see append_file.h).
  void write(int64_t step, const MetricsRecord& record);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  AppendFile file_;
};

}  // namespace conclave
