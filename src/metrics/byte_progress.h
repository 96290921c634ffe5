// How far work on files has come, while it goes on, on a terminal:
//   export  1.2 of 3.0 GB   40 %   512 MB/s   left 00:00:03
// Rewritten in place, a few times a second. Nothing is shown where the output is no terminal (a file, a pipe, a CI
// log).
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

namespace conclave {

// "1.2 GB", in powers of 1000 as disks are sold; three digits at least, fewer only of bytes.
std::string byte_count(uint64_t bytes);

// The line, without line feed.
std::string format_byte_progress(const std::string& work, uint64_t done, uint64_t total, double seconds);

class ByteProgress {
 public:
  enum class Show { on_terminal, never };
  // `out` stays the caller's. `total`: bytes of the whole work.
  ByteProgress(std::string work, uint64_t total, Show show, std::FILE* out = stderr);
  ~ByteProgress();  // takes the line away: what was done is the command's to say
  ByteProgress(const ByteProgress&) = delete;
  ByteProgress& operator=(const ByteProgress&) = delete;

  void add(uint64_t bytes);
  double seconds() const;  // since the begin

 private:
  using Clock = std::chrono::steady_clock;
  std::string work_;
  uint64_t total_;
  uint64_t done_ = 0;
  std::FILE* out_;
  bool shown_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point next_ = start_;
};

}  // namespace conclave
