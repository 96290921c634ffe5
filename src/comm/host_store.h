// The key-value store in which ranks of one host meet: c10d's interface over a Unix socket, where c10d's own store
// would open a port to everybody.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <memory>
#include <mutex>
#include <string>

#include "comm/host_message.h"
#include "comm/host_socket.h"

namespace conclave {

class HostStoreServer;

// One thread at a time is served: a thread that waits in get() keeps others out, and should have a clone().
class HostStore final : public c10d::Store {
 public:
  // `server`: in the process that serves it, lives as long as the stores that hold it. Waits up to `timeout` for
  // somebody to serve; throws std::system_error.
  HostStore(std::string name, std::shared_ptr<HostStoreServer> server, std::chrono::milliseconds timeout);

  c10::intrusive_ptr<c10d::Store> clone() override;
  using c10d::Store::compareSet;
  using c10d::Store::set;
  void set(const std::string& key, const std::vector<uint8_t>& value) override;
  std::vector<uint8_t> compareSet(const std::string& key, const std::vector<uint8_t>& expected,
                                  const std::vector<uint8_t>& desired) override;
  std::vector<uint8_t> get(const std::string& key) override;
  int64_t add(const std::string& key, int64_t value) override;
  bool deleteKey(const std::string& key) override;
  bool check(const std::vector<std::string>& keys) override;
  int64_t getNumKeys() override;
  void wait(const std::vector<std::string>& keys) override;
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) override;
  void append(const std::string& key, const std::vector<uint8_t>& value) override;
  std::vector<std::vector<uint8_t>> multiGet(const std::vector<std::string>& keys) override;
  void multiSet(const std::vector<std::string>& keys, const std::vector<std::vector<uint8_t>>& values) override;
  bool hasExtendedApi() const override { return true; }

 private:
  // Throws std::runtime_error when no answer comes in time, or the server is gone.
  std::vector<std::string> ask(HostMessage::Kind kind, std::vector<std::string> fields,
                               std::chrono::milliseconds timeout);
  std::vector<std::string> ask(HostMessage::Kind kind, std::vector<std::string> fields) {
    return ask(kind, std::move(fields), timeout_);
  }

  const std::string name_;
  const std::shared_ptr<HostStoreServer> server_;
  std::mutex mutex_;
  HostSocket connection_;  // guarded by the mutex, like what was received
  std::string received_;
};

}  // namespace conclave
