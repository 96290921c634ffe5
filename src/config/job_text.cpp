#include "config/job_text.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "base/shown_path.h"
#include "config/mistake.h"

namespace conclave {
namespace {

// "<path of the text> <name of the pipe>", from a process that read a pipe to those it starts.
constexpr const char* kept_variable = "CONCLAVE_JOB_FROM_PIPE";

class JobReader {
 public:
  JobReader(const std::filesystem::path& file, const std::string& what) : file_(file), what_(what) {}
  ~JobReader() {
    if (descriptor_ > STDIN_FILENO) ::close(descriptor_);
  }
  JobReader(const JobReader&) = delete;

  std::string read() {
    if (const std::string kept = kept_text(); !kept.empty()) return read_from(kept);
    if (file_ != "-") return read_from(file_);
    descriptor_ = STDIN_FILENO;
    return read_open();
  }

 private:
  // Where the process that started this one keeps the text of the pipe, if it read one of this name.
  std::string kept_text() const {
    const char* value = std::getenv(kept_variable);
    if (value == nullptr) return "";
    const std::string text = value;
    const size_t blank = text.find(' ');
    return blank != std::string::npos && text.substr(blank + 1) == file_.string() ? text.substr(0, blank) : "";
  }

  std::string read_from(const std::filesystem::path& path) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a fifo without a writer is opened at once
    if (descriptor_ < 0) refuse(std::strerror(errno));
    return read_open();
  }

  std::string read_open() {
    struct stat status {};
    if (::fstat(descriptor_, &status) != 0) refuse(std::strerror(errno));
    if (S_ISDIR(status.st_mode)) refuse("it is a folder");
    const bool is_device = S_ISBLK(status.st_mode) || (S_ISCHR(status.st_mode) && ::isatty(descriptor_) == 0);
    if (is_device) refuse("it is a device");
    if (S_ISREG(status.st_mode) && status.st_size > static_cast<off_t>(longest_job_bytes)) refuse_length();
    const bool is_file = S_ISREG(status.st_mode);
    std::string text = read_all(is_file);
    if (is_file) return text;
    if (text.empty()) refuse("it is an empty pipe, or one that another rank has read: ranks of torchrun need a file");
    keep(text);
    return text;
  }

  std::string read_all(bool is_file) {
    std::string text;
    char buffer[16384];
    for (;;) {
      if (!is_file) wait_for_more();
      const ssize_t count = ::read(descriptor_, buffer, sizeof buffer);
      if (count == 0) return text;
      if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (count < 0) refuse(std::strerror(errno));
      text.append(buffer, static_cast<size_t>(count));
      if (text.size() > longest_job_bytes) refuse_length();
    }
  }

  void wait_for_more() {
    const bool typed = ::isatty(descriptor_) == 1;
    pollfd wanted{descriptor_, POLLIN, 0};
    int ready = 0;
    while ((ready = ::poll(&wanted, 1, typed ? -1 : pipe_patience_seconds * 1000)) < 0 && errno == EINTR) {
    }
    if (ready == 0) refuse(fmt::format("it is a pipe, and nobody wrote to it for {} s", pipe_patience_seconds));
  }

  // For the processes that this one starts: a file without a name, which ends with this process.
  void keep(const std::string& text) const {
    const int kept = ::memfd_create("job", MFD_CLOEXEC);
    if (kept < 0 || ::write(kept, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
      throw std::runtime_error(fmt::format("the {} cannot be kept for the ranks: {}", what_, std::strerror(errno)));
    ::setenv(kept_variable, fmt::format("/proc/{}/fd/{} {}", ::getpid(), kept, file_.string()).c_str(), 1);
  }

  [[noreturn]] void refuse(const std::string& reason) const {
    throw UserError(mistake(fmt::format("the {} {} cannot be read: {}.", what_, name(), reason),
                            "Give the path of a YAML or JSON file, or - for standard input.", ""));
  }
  [[noreturn]] void refuse_length() const {
    refuse(fmt::format("it is longer than {} bytes, which no {} is", longest_job_bytes, what_));
  }
  std::string name() const { return file_ == "-" ? "on standard input" : shown_path(file_); }

  const std::filesystem::path& file_;
  const std::string& what_;
  int descriptor_ = -1;
};

}  // namespace

std::string read_job_text(const std::filesystem::path& file, const std::string& what) {
  return JobReader(file, what).read();
}

}  // namespace conclave
