#include "moe/routing_record.h"

#include <fmt/format.h>

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "base/error.h"

namespace conclave {
namespace {

static_assert(std::endian::native == std::endian::little, "the record's numbers are little-endian");

constexpr char mark[4] = {'s', 't', 'e', 'p'};
constexpr size_t head_of_step = 48;
constexpr int64_t most_ranks = 1 << 20, most_micro_steps = 1 << 20, most_tokens = int64_t{1} << 30;
constexpr uint64_t longest_varint = 5;  // of 32 bits

template <class T>
void put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

template <class T>
T take(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

uint64_t checksum_of(const char* data, size_t bytes) {
  return XXH3_64bits(data, bytes);
}

void put_varint(std::string& out, int32_t value) {
  auto left = (static_cast<uint32_t>(value) << 1) ^ static_cast<uint32_t>(value >> 31);
  for (; left >= 0x80; left >>= 7) out.push_back(static_cast<char>(left | 0x80));
  out.push_back(static_cast<char>(left));
}

// Advances `from`; past `end` when there is none.
int32_t take_varint(const char*& from, const char* end) {
  uint64_t value = 0;
  for (int shift = 0; from < end && shift < 35; shift += 7) {
    const auto byte = static_cast<unsigned char>(*from++);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return static_cast<int32_t>((value >> 1) ^ (~(value & 1) + 1));
  }
  from = end + 1;
  return 0;
}

// Where a number stands in RecordedRows::of_source, source by source in the order of the data.
struct Places {
  const RoutingShape& shape;
  int64_t micro_steps, ranks;

  int64_t of(int64_t source, int64_t layer, int64_t expert) const {
    const int64_t micro_step = source / ranks, rank = source % ranks;
    return ((rank * micro_steps + micro_step) * shape.layers + layer) * shape.experts + expert;
  }
};

// Each token has as many rows as choices, whatever the routing.
void check_sums(const RoutingShape& shape, const RecordedRows& rows, const std::string& where) {
  const auto* begin = rows.of_source.data();
  for (size_t i = 0; i < rows.of_source.size(); i += static_cast<size_t>(shape.experts)) {
    int64_t sum = 0;
    for (int64_t expert = 0; expert < shape.experts; ++expert) {
      if (begin[i + expert] < 0)
        user_error("{}: an expert has {} rows. The file is damaged.", where, begin[i + expert]);
      sum += begin[i + expert];
    }
    if (sum != rows.tokens * shape.choices)
      user_error("{}: {} tokens have {} rows in a layer, but each chooses {} experts. The file is damaged.", where,
                 rows.tokens, sum, shape.choices);
  }
}

}  // namespace

std::string routing_head(const RoutingShape& shape) {
  return fmt::format("conclave routing 1, {} layers, {} experts, {} choices\n", shape.layers, shape.experts,
                     shape.choices);
}

std::string routing_record(const RoutingShape& shape, int64_t step, const RecordedRows& rows) {
  const int64_t sources = rows.micro_steps * rows.ranks;
  check_invariant(static_cast<int64_t>(rows.of_source.size()) == sources * shape.layers * shape.experts,
                  "{} numbers of {} sources, {} layers and {} experts", rows.of_source.size(), sources, shape.layers,
                  shape.experts);
  const Places places{shape, rows.micro_steps, rows.ranks};
  std::string numbers;
  for (int64_t layer = 0; layer < shape.layers; ++layer)
    for (int64_t expert = 0; expert < shape.experts; ++expert)
      for (int64_t source = 0, before = 0; source < sources; ++source) {
        const int32_t own = rows.of_source[places.of(source, layer, expert)];
        put_varint(numbers, static_cast<int32_t>(own - before));
        before = own;
      }
  std::string record(mark, sizeof mark);
  put(record, static_cast<uint32_t>(numbers.size()));
  put(record, static_cast<uint64_t>(step));
  put(record, static_cast<uint32_t>(rows.ranks));
  put(record, static_cast<uint32_t>(rows.micro_steps));
  put(record, static_cast<uint64_t>(rows.tokens));
  put(record, checksum_of(numbers.data(), numbers.size()));
  put(record, checksum_of(record.data(), record.size()));
  return record + numbers;
}

RoutingRecord::RoutingRecord(std::filesystem::path file) : file_(std::move(file)) {
  std::ifstream in(file_, std::ios::binary);
  if (!in) user_error("{} cannot be read: {}.", file_.string(), std::strerror(errno));
  std::string line(120, '\0');
  in.read(line.data(), static_cast<std::streamsize>(line.size()));
  line.resize(static_cast<size_t>(in.gcount()));
  line.resize(std::min(line.size(), line.find('\n') == std::string::npos ? 0 : line.find('\n') + 1));
  long long layers = 0, experts = 0, choices = 0;
  std::sscanf(line.c_str(), "conclave routing 1, %lld layers, %lld experts, %lld choices", &layers, &experts, &choices);
  shape_ = {layers, experts, choices};
  if (layers < 1 || experts < 1 || choices < 1 || layers > 1 << 20 || experts > 1 << 20 || choices > experts ||
      line != routing_head(shape_))
    user_error(
        "{} is not a record of routing: it does not begin with the line that a run with metrics.record_routing writes. "
        "Give routing.bin, or the folder of such a run.",
        file_.string());
  head_bytes_ = line.size();
  const uint64_t size = std::filesystem::file_size(file_);
  in.clear();
  for (uint64_t at = head_bytes_; at < size;) {
    if (!read_step(in, at, size)) return;
    at = steps_.back().begin + steps_.back().bytes;
  }
}

void RoutingRecord::find_damage(const std::string& what, uint64_t at) {
  damage_ = fmt::format("{}, byte {}: {}. The file is damaged.", file_.string(), at, what);
}

bool RoutingRecord::read_step(std::ifstream& in, uint64_t at, uint64_t size) {
  const auto stop_at_part = [&] {
    unfinished_bytes_ = size - at;
    return false;
  };
  const auto stop_at_damage = [&](const std::string& what) {
    find_damage(what, at);
    return false;
  };
  char head[head_of_step];
  in.seekg(static_cast<std::streamoff>(at));
  in.read(head, std::min<std::streamsize>(head_of_step, static_cast<std::streamsize>(size - at)));
  const auto found = static_cast<size_t>(in.gcount());
  if (std::memcmp(head, mark, std::min(found, sizeof mark)) != 0) return stop_at_damage("no record begins here");
  if (found < head_of_step) return stop_at_part();
  if (take<uint64_t>(head + 40) != checksum_of(head, 40))
    return stop_at_damage("the head of a record is not as written");
  Step step;
  step.bytes = take<uint32_t>(head + 4);
  step.step = static_cast<int64_t>(take<uint64_t>(head + 8));
  step.ranks = take<uint32_t>(head + 16);
  step.micro_steps = take<uint32_t>(head + 20);
  step.tokens = static_cast<int64_t>(take<uint64_t>(head + 24));
  step.checksum = take<uint64_t>(head + 32);
  step.begin = at + head_of_step;
  const bool is_sized = step.ranks >= 1 && step.ranks <= most_ranks && step.micro_steps >= 1 &&
                        step.micro_steps <= most_micro_steps && step.tokens >= 1 && step.tokens <= most_tokens;
  const auto numbers = static_cast<double>(step.sources()) * static_cast<double>(shape_.layers * shape_.experts);
  const auto bytes = static_cast<double>(step.bytes);
  if (!is_sized || bytes < numbers || bytes > numbers * longest_varint)
    return stop_at_damage(fmt::format("{} bytes hold no rows of {} ranks, {} micro-steps, {} tokens", step.bytes,
                                      step.ranks, step.micro_steps, step.tokens));
  if (!steps_.empty() && step.step <= steps_.back().step)
    return stop_at_damage(fmt::format("step {} follows step {}", step.step, steps_.back().step));
  if (size - step.begin < step.bytes) return stop_at_part();
  steps_.push_back(step);
  return true;
}

uint64_t RoutingRecord::bytes_until(int64_t last) const {
  uint64_t bytes = head_bytes_;
  for (const Step& step : steps_)
    if (step.step <= last) bytes = step.begin + step.bytes;
  return bytes;
}

RecordedRows RoutingRecord::rows(size_t index) const {
  const Step& step = steps_.at(index);
  const std::string where = fmt::format("{}, step {}", file_.string(), step.step);
  std::string numbers(step.bytes, '\0');
  std::ifstream in(file_, std::ios::binary);
  in.seekg(static_cast<std::streamoff>(step.begin));
  if (!in.read(numbers.data(), static_cast<std::streamsize>(numbers.size())))
    user_error("{}: the file cannot be read any more.", where);
  if (checksum_of(numbers.data(), numbers.size()) != step.checksum)
    user_error("{}: the rows are not as they were written. The file is damaged.", where);
  RecordedRows rows{step.micro_steps, step.ranks, step.tokens, {}};
  rows.of_source.resize(static_cast<size_t>(step.sources() * shape_.layers * shape_.experts));
  const Places places{shape_, step.micro_steps, step.ranks};
  const char* from = numbers.data();
  const char* const end = from + numbers.size();
  for (int64_t layer = 0; layer < shape_.layers; ++layer)
    for (int64_t expert = 0; expert < shape_.experts; ++expert)
      for (int64_t source = 0, own = 0; source < step.sources(); ++source) {
        own = static_cast<int32_t>(own + take_varint(from, end));
        rows.of_source[places.of(source, layer, expert)] = static_cast<int32_t>(own);
      }
  if (from != end) user_error("{}: the rows take other bytes than there are. The file is damaged.", where);
  check_sums(shape_, rows, where);
  return rows;
}

}  // namespace conclave
