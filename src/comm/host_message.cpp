#include "comm/host_message.h"

#include <cstring>
#include <stdexcept>

namespace conclave {
namespace {

constexpr uint32_t longest_message = 64 << 20;

void append(std::string& bytes, uint32_t number) {
  bytes.append(reinterpret_cast<const char*>(&number), sizeof number);
}

uint32_t number_at(const std::string& bytes, size_t at) {
  uint32_t number;
  std::memcpy(&number, bytes.data() + at, sizeof number);
  return number;
}

}  // namespace

// The length of what follows, the kind, then each field with its length before it. Both ends are on one machine.
std::string encode(const HostMessage& message) {
  std::string body(1, static_cast<char>(message.kind));
  for (const std::string& field : message.fields) {
    append(body, static_cast<uint32_t>(field.size()));
    body += field;
  }
  std::string bytes;
  append(bytes, static_cast<uint32_t>(body.size()));
  return bytes + body;
}

std::optional<HostMessage> take_message(std::string& bytes) {
  constexpr size_t head = sizeof(uint32_t);
  if (bytes.size() < head) return {};
  const uint32_t length = number_at(bytes, 0);
  if (length < 1 || length > longest_message) throw std::runtime_error("a message of the host's store is malformed");
  if (bytes.size() < head + length) return {};
  HostMessage message;
  message.kind = static_cast<HostMessage::Kind>(bytes[head]);
  const size_t end = head + length;
  for (size_t at = head + 1; at < end;) {
    if (end - at < head || end - at - head < number_at(bytes, at))
      throw std::runtime_error("a message of the host's store is malformed");
    message.fields.push_back(bytes.substr(at + head, number_at(bytes, at)));
    at += head + message.fields.back().size();
  }
  bytes.erase(0, end);
  return message;
}

}  // namespace conclave
