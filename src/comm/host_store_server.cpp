#include "comm/host_store_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <stdexcept>
#include <vector>

namespace conclave {

HostStoreServer::HostStoreServer(const std::string& name)
    : listener_(listen_on_host(name)), ending_(::eventfd(0, EFD_CLOEXEC)) {
  // Signals are the affair of the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

HostStoreServer::~HostStoreServer() {
  const uint64_t one = 1;
  [[maybe_unused]] const auto written = ::write(ending_.file(), &one, sizeof one);
  thread_.join();
}

void HostStoreServer::run() {
  while (true) {
    std::vector<pollfd> polled{{ending_.file(), POLLIN, 0}, {listener_.file(), POLLIN, 0}};
    for (const Client& client : clients_)
      polled.push_back({client.socket.file(), static_cast<short>(client.out.empty() ? POLLIN : POLLIN | POLLOUT), 0});
    if (::poll(polled.data(), polled.size(), -1) < 0) continue;  // EINTR
    if (polled[0].revents != 0) return;
    auto events = polled.begin() + 2;
    for (Client& client : clients_) {
      if ((events->revents & (POLLIN | POLLHUP | POLLERR)) != 0) receive(client);
      if ((events->revents & POLLOUT) != 0) send(client);
      ++events;
    }
    clients_.remove_if([](const Client& client) { return client.ended; });
    if ((polled[1].revents & POLLIN) != 0)
      if (HostSocket accepted = accept_own_user(listener_); accepted.is_open())
        clients_.emplace_back().socket = std::move(accepted);
  }
}

void HostStoreServer::receive(Client& client) {
  char buffer[1 << 16];
  const ssize_t count = ::recv(client.socket.file(), buffer, sizeof buffer, 0);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  client.ended = count <= 0;
  if (client.ended) return;
  client.in.append(buffer, static_cast<size_t>(count));
  try {
    while (auto request = take_message(client.in)) handle(client, std::move(*request));
  } catch (const std::exception&) {
    client.ended = true;  // not one of ours
  }
}

void HostStoreServer::send(Client& client) {
  const ssize_t count = ::send(client.socket.file(), client.out.data(), client.out.size(), MSG_NOSIGNAL);
  if (count >= 0)
    client.out.erase(0, static_cast<size_t>(count));
  else if (errno != EAGAIN && errno != EINTR)
    client.ended = true;
}

void HostStoreServer::reply(Client& client, std::vector<std::string> fields) {
  client.out += encode({HostMessage::Kind::answer, std::move(fields)});
  send(client);
}

bool HostStoreServer::has_all(const std::vector<std::string>& keys) const {
  return std::all_of(keys.begin(), keys.end(), [&](const std::string& key) { return values_.contains(key); });
}

void HostStoreServer::handle(Client& client, HostMessage request) {
  using enum HostMessage::Kind;
  if (request.kind == get || request.kind == wait) {
    client.pending = std::move(request);
  } else {
    reply(client, carry_out(request));
  }
  answer_those_that_wait();
}

std::vector<std::string> HostStoreServer::carry_out(const HostMessage& request) {
  using enum HostMessage::Kind;
  const auto& fields = request.fields;
  switch (request.kind) {
    case set:
      values_[fields.at(0)] = fields.at(1);
      return {};
    case append:
      values_[fields.at(0)] += fields.at(1);
      return {};
    case check:
      return {has_all(fields) ? "1" : "0"};
    case compare_set: {
      const auto found = values_.find(fields.at(0));
      const bool matches = found == values_.end() ? fields.at(1).empty() : found->second == fields.at(1);
      if (matches) values_[fields.at(0)] = fields.at(2);
      return {matches ? fields.at(2) : found == values_.end() ? fields.at(1) : found->second};
    }
    case add: {
      std::string& sum = values_[fields.at(0)];
      sum = std::to_string((sum.empty() ? 0 : std::stoll(sum)) + std::stoll(fields.at(1)));
      return {sum};
    }
    case remove:
      return {values_.erase(fields.at(0)) > 0 ? "1" : "0"};
    case count:
      return {std::to_string(values_.size())};
    default:
      throw std::runtime_error("no such request");
  }
}

void HostStoreServer::answer_those_that_wait() {
  for (Client& client : clients_) {
    if (!client.pending || !has_all(client.pending->fields)) continue;
    std::vector<std::string> values;
    if (client.pending->kind == HostMessage::Kind::get)
      for (const std::string& key : client.pending->fields) values.push_back(values_[key]);
    client.pending.reset();
    reply(client, std::move(values));
  }
}

}  // namespace conclave
