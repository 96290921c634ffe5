#include "metrics/byte_progress.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

#include "metrics/terminal.h"

namespace conclave {

std::string byte_count(uint64_t bytes) {
  constexpr const char* units[] = {"bytes", "kB", "MB", "GB", "TB", "PB", "EB"};
  if (bytes < 1000) return fmt::format("{} bytes", bytes);
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0, units[unit]);
}

std::string format_byte_progress(const std::string& work, uint64_t done, uint64_t total, double seconds) {
  const double share = total == 0 ? 1.0 : static_cast<double>(done) / static_cast<double>(total);
  std::string line = fmt::format("{}  {} of {}  {:3.0f} %", work, byte_count(done), byte_count(total), 100 * share);
  if (seconds > 0 && done > 0) {
    const double rate = static_cast<double>(done) / seconds;
    line += fmt::format("  {}/s  left {}", byte_count(static_cast<uint64_t>(rate)),
                        duration(static_cast<double>(total - std::min(done, total)) / rate));
  }
  return line;
}

ByteProgress::ByteProgress(std::string work, uint64_t total, Show show, std::FILE* out)
    : work_(std::move(work)), total_(total), out_(out), shown_(show == Show::on_terminal && is_terminal(out)) {}

ByteProgress::~ByteProgress() {
  if (shown_) clear_line(out_);
}

double ByteProgress::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void ByteProgress::add(uint64_t bytes) {
  done_ += bytes;
  const Clock::time_point now = Clock::now();
  if (!shown_ || now < next_) return;
  next_ = now + std::chrono::milliseconds(200);
  rewrite_line(out_, format_byte_progress(work_, done_, total_, seconds()));
}

}  // namespace conclave
