#include "run/run_lock.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/log.h"

namespace conclave {
namespace {

// A supervisor starts a run again while the one before still ends: its ranks save, or wait for each other.
constexpr std::chrono::seconds patience{10};
constexpr std::chrono::milliseconds pause{100};

std::string this_process() {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) std::strcpy(host.data(), "?");
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  ::localtime_r(&now, &local);
  return fmt::format("process {} on {}, since {:%Y-%m-%d %H:%M:%S}", ::getpid(), host.data(), local);
}

// What the holder wrote; it may be about to.
std::string holder_of(int descriptor) {
  std::array<char, 512> text{};
  const ssize_t bytes = ::pread(descriptor, text.data(), text.size() - 1, 0);
  std::string holder(text.data(), bytes > 0 ? static_cast<size_t>(bytes) : 0);
  holder.resize(std::min(holder.size(), holder.find('\n')));
  return holder.empty() ? "another process" : holder;
}

void write_holder(int descriptor, const std::filesystem::path& file) {
  const std::string text = this_process() + "\n";
  if (::ftruncate(descriptor, 0) != 0 ||
      ::pwrite(descriptor, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()))
    spdlog::warn("cannot write {}: {}. The folder is locked all the same.", file.string(), std::strerror(errno));
}

// 0, or the errno.
int try_lock(int descriptor) {
  int failed;
  do {
    failed = ::flock(descriptor, LOCK_EX | LOCK_NB);
  } while (failed != 0 && errno == EINTR);
  return failed == 0 ? 0 : errno;
}

// As try_lock, but for a while when another process has it.
int lock_in_time(int descriptor, const std::filesystem::path& folder) {
  const auto until = std::chrono::steady_clock::now() + patience;
  bool said = false;
  for (;;) {
    const int reason = try_lock(descriptor);
    if (reason != EWOULDBLOCK || std::chrono::steady_clock::now() >= until) return reason;
    if (!std::exchange(said, true))
      spdlog::info("{} is in use by another run: {}; waiting up to {} s for it to end", folder.string(),
                   holder_of(descriptor), patience.count());
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace

RunLock::RunLock(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / lock_file_name;
  descriptor_ = ::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (descriptor_ < 0) throw std::system_error(errno, std::generic_category(), "cannot open " + file.string());
  const int reason = lock_in_time(descriptor_, folder);
  if (reason == 0) {
    write_holder(descriptor_, file);
    return;
  }
  if (reason == EWOULDBLOCK) {
    const std::string holder = holder_of(descriptor_);
    ::close(descriptor_);
    user_error(
        "run.output_dir is {}, but another run is using that folder: {}.\n       Wait until it ends, or stop it, or "
        "use another run.output_dir.",
        folder.string(), holder);
  }
  spdlog::warn("{} cannot be locked ({}): nothing keeps a second run out of this folder.", file.string(),
               std::strerror(reason));
}

RunLock::~RunLock() {
  ::close(descriptor_);
}

}  // namespace conclave
