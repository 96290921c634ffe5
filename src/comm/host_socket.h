// Unix sockets between processes of one user on one host. They have a name and no file, so nothing is left behind, and
// the kernel says whose process is at the other end: nobody else gets in, over whatever network.
#pragma once

#include <chrono>
#include <string>

namespace conclave {

// A socket that closes itself.
class HostSocket {
 public:
  HostSocket() = default;
  explicit HostSocket(int file) : file_(file) {}
  HostSocket(HostSocket&& other) noexcept;
  HostSocket& operator=(HostSocket&& other) noexcept;
  ~HostSocket();

  int file() const { return file_; }
  bool is_open() const { return file_ >= 0; }

 private:
  int file_ = -1;
};

// Each user has names of its own. Throws std::system_error, EADDRINUSE if the name is taken.
HostSocket listen_on_host(const std::string& name);
// The next one that knocks; closed if that is another user's process, or there is none.
HostSocket accept_own_user(const HostSocket& listener);
// Waits until somebody listens. Throws std::system_error, ETIMEDOUT if nobody does by then; EPERM if it is another
// user's process.
HostSocket connect_on_host(const std::string& name, std::chrono::steady_clock::time_point until);

}  // namespace conclave
