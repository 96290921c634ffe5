// routing.bin: how many rows each rank's tokens had for each expert, by layer, in every micro-step of a run. What a run
// writes of its routing (metrics.record_routing), and what `conclave plan --routing` replays.
//
// A first line, "conclave routing 1, 32 layers, 8 experts, 2 choices", then a record for each step, in ascending order:
//   bytes 0-3    "step"
//   bytes 4-7    bytes of the rows that follow, u32; all numbers little-endian
//   bytes 8-15   step, u64
//   bytes 16-23  ranks and micro-steps, u32 each
//   bytes 24-31  tokens of a rank in a micro-step, u64
//   bytes 32-39  XXH3 (64 bits) of the rows
//   bytes 40-47  XXH3 (64 bits) of bytes 0-39
//   rows: for each layer and expert one number for each source, micro-step by micro-step, rank by rank: the difference
//   to the source before, as a zigzag varint (protobuf.dev/programming-guides/encoding). One or two bytes each.
// A run that is killed while it writes leaves a part of a record at the end, which is no damage.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace conclave {

inline constexpr const char* routing_file_name = "routing.bin";

struct RoutingShape {
  int64_t layers = 0;
  int64_t experts = 0;
  int64_t choices = 0;  // of a token
  friend bool operator==(const RoutingShape&, const RoutingShape&) = default;
};

// Of one step.
struct RecordedRows {
  int64_t micro_steps = 0;
  int64_t ranks = 0;
  int64_t tokens = 0;              // of a rank in a micro-step
  std::vector<int32_t> of_source;  // [ranks, micro-steps, layers, experts]

  friend bool operator==(const RecordedRows&, const RecordedRows&) = default;
};

std::string routing_head(const RoutingShape& shape);
std::string routing_record(const RoutingShape& shape, int64_t step, const RecordedRows& rows);

class RoutingRecord {
 public:
  // Reads where the steps are. Throws UserError when this is no record of routing.
  explicit RoutingRecord(std::filesystem::path file);

  struct Step {
    int64_t step = 0;
    int64_t micro_steps = 0;
    int64_t ranks = 0;
    int64_t tokens = 0;  // of a rank in a micro-step
    uint64_t checksum = 0;
    uint64_t begin = 0, bytes = 0;  // of the rows in the file

    int64_t sources() const { return micro_steps * ranks; }
    int64_t tokens_of_all() const { return sources() * tokens; }
  };
  const std::filesystem::path& file() const { return file_; }
  const RoutingShape& shape() const { return shape_; }
  const std::vector<Step>& steps() const { return steps_; }
  // What a killed run left of a record at the end.
  uint64_t unfinished_bytes() const { return unfinished_bytes_; }
  // Why there are no more steps; empty: the file ends.
  const std::string& damage() const { return damage_; }
  // Bytes up to and with the last record of a step of at most `step`.
  uint64_t bytes_until(int64_t step) const;

  // Throws UserError when they are damaged.
  RecordedRows rows(size_t index) const;

 private:
  bool read_step(std::ifstream& in, uint64_t at, uint64_t size);
  void find_damage(const std::string& what, uint64_t at);

  std::filesystem::path file_;
  RoutingShape shape_;
  uint64_t head_bytes_ = 0;
  std::vector<Step> steps_;
  uint64_t unfinished_bytes_ = 0;
  std::string damage_;
};

}  // namespace conclave
