// What a rank sends in a collective, and how an all_reduce is divided among ranks: one arithmetic for the communicators
// that send, the one that counts, and the planner that predicts.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>

namespace conclave {

// Bytes are those of one rank's data handed to the transport for other ranks, without headers. A group of one rank
// sends 0 bytes; its calls count.
struct Traffic {
  int64_t calls = 0;
  int64_t bytes = 0;
  bool operator==(const Traffic&) const = default;
};
using TrafficByOperation = std::map<std::pair<std::string, std::string>, Traffic>;  // by (axis, operation)

// all_gather: `part_bytes` is the rank's input. reduce_scatter: its output. Both: each other rank gets a part.
inline int64_t bytes_to_all_others(int64_t part_bytes, int size) {
  return (size - 1) * part_bytes;
}

// An all_reduce is done in one go (each rank gets every rank's tensor and sums) for two ranks or few bytes; else in
// parts: rank r sums the elements [part_begin(r), part_begin(r + 1)) and gives them to the others.
inline constexpr int64_t all_reduce_in_one_go_bytes = 64 * 1024;
inline bool all_reduce_in_one_go(int64_t bytes, int size) {
  return size <= 2 || bytes <= all_reduce_in_one_go_bytes;
}
inline int64_t part_begin(int64_t count, int part, int parts) {
  return count / parts * part + count % parts * part / parts;
}
// Of `count` elements of `item` bytes.
inline int64_t all_reduce_bytes(int64_t count, int64_t item, int rank, int size) {
  if (all_reduce_in_one_go(count * item, size)) return bytes_to_all_others(count * item, size);
  const int64_t own = part_begin(count, rank + 1, size) - part_begin(count, rank, size);
  return (count - own) * item + bytes_to_all_others(own * item, size);
}

}  // namespace conclave
