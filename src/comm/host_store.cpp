#include "comm/host_store.h"

#include <fmt/core.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

#include "comm/host_store_server.h"

namespace conclave {

using Clock = std::chrono::steady_clock;
using Kind = HostMessage::Kind;

namespace {

std::string text_of(const std::vector<uint8_t>& bytes) {
  return {bytes.begin(), bytes.end()};
}
std::vector<uint8_t> bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

void send_all(const HostSocket& connection, const std::string& bytes) {
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t count = ::send(connection.file(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw std::runtime_error("the process that serves it has ended");
    sent += static_cast<size_t>(count);
  }
}

// Adds what comes by then to `received`; false if nothing does.
bool receive(const HostSocket& connection, std::string& received, Clock::time_point until) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
  pollfd polled{connection.file(), POLLIN, 0};
  const int ready = ::poll(&polled, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 3'600'000)));
  if (ready == 0) return Clock::now() < until;
  char buffer[1 << 14];
  const ssize_t count = ready < 0 ? -1 : ::recv(connection.file(), buffer, sizeof buffer, 0);
  if (count < 0 && errno == EINTR) return true;
  if (count <= 0) throw std::runtime_error("the process that serves it has ended");
  received.append(buffer, static_cast<size_t>(count));
  return true;
}

}  // namespace

HostStore::HostStore(std::string name, std::shared_ptr<HostStoreServer> server, std::chrono::milliseconds timeout)
    : Store(timeout),
      name_(std::move(name)),
      server_(std::move(server)),
      connection_(connect_on_host(name_, Clock::now() + timeout)) {}

c10::intrusive_ptr<c10d::Store> HostStore::clone() {
  return c10::make_intrusive<HostStore>(name_, server_, timeout_);
}

std::vector<std::string> HostStore::ask(Kind kind, std::vector<std::string> fields, std::chrono::milliseconds timeout) {
  const auto until = Clock::now() + timeout;
  const std::lock_guard lock(mutex_);
  if (!connection_.is_open()) connection_ = connect_on_host(name_, until);
  const std::string what = fields.empty() ? "" : fields[0];
  send_all(connection_, encode({kind, std::move(fields)}));
  while (true) {
    if (auto answer = take_message(received_)) return std::move(answer->fields);
    if (receive(connection_, received_, until)) continue;
    // Its answer may come later, and would be taken for the next one's.
    connection_ = HostSocket();
    received_.clear();
    throw std::runtime_error(fmt::format("nothing came for {} within {} ms", what, timeout.count()));
  }
}

void HostStore::set(const std::string& key, const std::vector<uint8_t>& value) {
  ask(Kind::set, {key, text_of(value)});
}

std::vector<uint8_t> HostStore::compareSet(const std::string& key, const std::vector<uint8_t>& expected,
                                           const std::vector<uint8_t>& desired) {
  return bytes_of(ask(Kind::compare_set, {key, text_of(expected), text_of(desired)}).at(0));
}

std::vector<uint8_t> HostStore::get(const std::string& key) {
  return bytes_of(ask(Kind::get, {key}).at(0));
}

int64_t HostStore::add(const std::string& key, int64_t value) {
  return std::stoll(ask(Kind::add, {key, std::to_string(value)}).at(0));
}

bool HostStore::deleteKey(const std::string& key) {
  return ask(Kind::remove, {key}).at(0) == "1";
}

bool HostStore::check(const std::vector<std::string>& keys) {
  return ask(Kind::check, keys).at(0) == "1";
}

int64_t HostStore::getNumKeys() {
  return std::stoll(ask(Kind::count, {}).at(0));
}

void HostStore::wait(const std::vector<std::string>& keys) {
  wait(keys, timeout_);
}

void HostStore::wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) {
  ask(Kind::wait, keys, timeout);
}

void HostStore::append(const std::string& key, const std::vector<uint8_t>& value) {
  ask(Kind::append, {key, text_of(value)});
}

std::vector<std::vector<uint8_t>> HostStore::multiGet(const std::vector<std::string>& keys) {
  std::vector<std::vector<uint8_t>> values;
  for (const std::string& value : ask(Kind::get, keys)) values.push_back(bytes_of(value));
  return values;
}

void HostStore::multiSet(const std::vector<std::string>& keys, const std::vector<std::vector<uint8_t>>& values) {
  for (size_t i = 0; i < keys.size(); ++i) set(keys[i], values.at(i));
}

}  // namespace conclave
