// The text of a job file: of a regular file, or of a pipe by choice (`-`, /dev/stdin, <(...), a fifo). A pipe can be
// read only once, so its text is kept for the ranks that this process starts.
#pragma once

#include <filesystem>
#include <string>

namespace conclave {

// No job comes near this.
inline constexpr size_t longest_job_bytes = 1 << 20;

// `what`: what messages call the file. UserError: it cannot be read, is longer than longest_job_bytes, is a device, or
// is a pipe that nobody writes to for pipe_patience_seconds.
inline constexpr int pipe_patience_seconds = 15;
std::string read_job_text(const std::filesystem::path& file, const std::string& what);

}  // namespace conclave
