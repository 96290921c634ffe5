// Serves the store of one host's ranks (host_store.h) from a thread of its own, for processes of this user only.
#pragma once

#include <list>
#include <map>
#include <string>
#include <thread>

#include "comm/host_message.h"
#include "comm/host_socket.h"

namespace conclave {

class HostStoreServer {
 public:
  // Throws std::system_error, EADDRINUSE if the name is taken.
  explicit HostStoreServer(const std::string& name);
  ~HostStoreServer();
  HostStoreServer(const HostStoreServer&) = delete;

 private:
  struct Client {
    HostSocket socket;
    std::string in, out;
    std::optional<HostMessage> pending;  // waits for its keys
    bool ended = false;
  };
  void run();
  void receive(Client& client);
  void send(Client& client);
  void handle(Client& client, HostMessage request);
  void reply(Client& client, std::vector<std::string> fields);
  // What a request that waits for nothing is answered with. Throws std::exception on one that makes no sense.
  std::vector<std::string> carry_out(const HostMessage& request);
  bool has_all(const std::vector<std::string>& keys) const;
  void answer_those_that_wait();

  HostSocket listener_;
  HostSocket ending_;  // readable: the thread is to end
  std::map<std::string, std::string> values_;
  std::list<Client> clients_;
  std::thread thread_;
};

}  // namespace conclave
