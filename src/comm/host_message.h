// The requests and answers of the store of one host (host_store.h), as bytes on a stream.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace conclave {

struct HostMessage {
  enum class Kind : uint8_t {
    set,          // key, value
    get,          // keys; answered with their values once all are there
    wait,         // keys; answered once all are there
    check,        // keys; "1" if all are there, else "0"
    compare_set,  // key, expected value, new value; the value that stands afterwards
    add,          // key, number; the sum
    append,       // key, value
    remove,       // key; "1" if it was there
    count,        // how many keys there are
    answer,
  };
  Kind kind = Kind::answer;
  std::vector<std::string> fields;
};

std::string encode(const HostMessage& message);

// Takes the first message off `bytes`; nothing if it has not come whole. Throws std::runtime_error on bytes that are no
// message.
std::optional<HostMessage> take_message(std::string& bytes);

}  // namespace conclave
