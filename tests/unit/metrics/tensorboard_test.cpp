#include "metrics/tensorboard.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <optional>
#include <sstream>

#include "file_size_limit.h"
#include "temporary_folder.h"

namespace conclave {
namespace {

// --- An independent reader: the wire format of protocol buffers and the record framing, from their descriptions. ---

// CRC-32C bit by bit, as a polynomial division; the code under test goes by table.
uint32_t reference_crc32c(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (unsigned char byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? (crc >> 1) ^ 0x82f63b78u : crc >> 1;
  }
  return ~crc;
}

template <class T>
T take(std::string_view& bytes) {
  T value{};
  if (bytes.size() < sizeof value) throw std::runtime_error("cut short");
  std::memcpy(&value, bytes.data(), sizeof value);
  bytes.remove_prefix(sizeof value);
  return value;
}

std::vector<std::string> records_of(std::string_view file) {
  std::vector<std::string> records;
  while (!file.empty()) {
    const std::string_view length_bytes = file.substr(0, 8);
    const auto length = take<uint64_t>(file);
    const auto unmask = [](uint32_t masked) {
      const uint32_t rotated = masked - 0xa282ead8u;
      return (rotated >> 17) | (rotated << 15);
    };
    EXPECT_EQ(unmask(take<uint32_t>(file)), reference_crc32c(length_bytes));
    records.emplace_back(file.substr(0, length));
    file.remove_prefix(length);
    EXPECT_EQ(unmask(take<uint32_t>(file)), reference_crc32c(records.back()));
  }
  return records;
}

// Field number -> values in order; numbers as their 8 bytes, messages and text as they are.
std::multimap<int, std::string> fields_of(std::string_view message) {
  const auto varint = [&] {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = take<uint8_t>(message);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if ((byte & 0x80) == 0) return value;
    }
  };
  std::multimap<int, std::string> fields;
  while (!message.empty()) {
    const uint64_t key = varint();
    uint64_t size = 0;
    uint64_t value = 0;
    switch (key & 7) {
      case 0:
        value = varint();
        fields.emplace(key >> 3, std::string(reinterpret_cast<char*>(&value), 8));
        continue;
      case 1:
        size = 8;
        break;
      case 2:
        size = varint();
        break;
      case 5:
        size = 4;
        break;
      default:
        throw std::runtime_error("wire type");
    }
    fields.emplace(key >> 3, std::string(message.substr(0, size)));
    message.remove_prefix(size);
  }
  return fields;
}

template <class T>
T as(const std::string& bytes) {
  std::string_view view = bytes;
  return take<T>(view);
}

// The field that must be there, once.
std::string only(const std::multimap<int, std::string>& fields, int number) {
  if (fields.count(number) != 1) throw std::runtime_error("field " + std::to_string(number) + " is not there once");
  return fields.find(number)->second;
}

struct ReadEvent {
  double wall_time = 0;
  int64_t step = 0;
  std::string version;
  std::optional<int64_t> session_status;
  std::vector<std::pair<std::string, float>> scalars;
};

std::vector<ReadEvent> events_of(const std::filesystem::path& file) {
  std::ostringstream content;
  content << std::ifstream(file, std::ios::binary).rdbuf();
  std::vector<ReadEvent> events;
  for (const std::string& record : records_of(content.str())) {
    ReadEvent event;
    for (const auto& [number, value] : fields_of(record)) {
      if (number == 1) event.wall_time = as<double>(value);
      if (number == 2) event.step = as<int64_t>(value);
      if (number == 3) event.version = value;
      if (number == 7) event.session_status = as<int64_t>(only(fields_of(value), 1));
      if (number != 5) continue;
      for (const auto& [one, entry] : fields_of(value)) {
        event.scalars.emplace_back(only(fields_of(entry), 1), as<float>(only(fields_of(entry), 2)));
      }
    }
    events.push_back(event);
  }
  return events;
}

// Oracle: RFC 3720, appendix B.4.
TEST(Crc32c, equals_the_published_vectors) {
  std::string ascending;
  for (int i = 0; i < 32; ++i) ascending += static_cast<char>(i);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(ascending), 0x46dd794eu);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(""), 0u);
}

// Oracle: the bytes that the record writer of the `tensorboard` package (2.21) makes of Event(wall_time=1.5, step=7,
// loss=2.25).
TEST(TfRecord, equals_tensorboards_own_writer) {
  const auto bytes_of_hex = [](std::string_view hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
    return bytes;
  };
  const std::string event = bytes_of_hex("09000000000000f83f10072a0d0a0b0a046c6f73731500001040");
  EXPECT_EQ(tfrecord(event), bytes_of_hex("1a00000000000000129bd82d") + event + bytes_of_hex("14c1dfcc"));
}

TEST(TensorBoardLog, holds_the_records_scalars_in_order) {
  TemporaryFolder folder;
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  };
  const double begin = now();
  TensorBoardLog log(folder / "tensorboard", 0);
  log.write(1, {{"loss", 2.5},
                {"tokens", int64_t{4096}},
                {"mfu", std::monostate{}},
                {"device", "cpu"},
                {"expert_load", std::vector<double>{1.0, 0.5}},
                {"expert_share_by_layer",
                 LayerRows{std::vector<double>{0.25, 0.75}, std::nullopt, std::vector<double>{0.5, 0.5}}}});
  log.write(300, {{"loss", 0.0}});
  log.write(301, {{"device", "cpu"}});  // nothing to draw
  const double end = now();

  const std::vector<ReadEvent> events = events_of(log.path());
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].version, "brain.Event:2");
  EXPECT_EQ(events[1].session_status, 1);
  EXPECT_EQ(events[2].step, 1);
  const std::vector<std::pair<std::string, float>> expected = {{"train/loss", 2.5f},
                                                               {"train/tokens", 4096.0f},
                                                               {"experts/expert_load/0", 1.0f},
                                                               {"experts/expert_load/1", 0.5f},
                                                               {"experts/expert_share_by_layer/0/0", 0.25f},
                                                               {"experts/expert_share_by_layer/0/1", 0.75f},
                                                               {"experts/expert_share_by_layer/2/0", 0.5f},
                                                               {"experts/expert_share_by_layer/2/1", 0.5f}};
  EXPECT_EQ(events[2].scalars, expected);
  EXPECT_EQ(events[3].step, 300);
  for (const ReadEvent& event : events) {
    EXPECT_GE(event.wall_time, begin);
    EXPECT_LE(event.wall_time, end);
  }
}

TEST(TensorBoardLog, groups_names_as_people_look_for_them) {
  const std::vector<std::pair<std::string, std::string>> tags = {
      {"lm_loss", "train/lm_loss"},
      {"lr", "train/lr"},
      {"grad_norm", "train/grad_norm"},
      {"validation_loss", "validation/loss"},
      {"validation/code/loss", "validation/code/loss"},
      {"source/chat/loss", "source/chat/loss"},
      {"tokens_per_second", "speed/tokens_per_second"},
      {"gather_wait_seconds", "speed/gather_wait_seconds"},
      {"mfu", "speed/mfu"},
      {"save_seconds", "checkpoints/save_seconds"},
      {"save_stall_seconds", "checkpoints/save_stall_seconds"},
      {"peak_memory_bytes", "memory/peak_memory_bytes"},
      {"memory/moments", "memory/moments"},
      {"expert_imbalance", "experts/expert_imbalance"},
      {"z_loss", "train/z_loss"},
      {"z_loss_by_layer", "experts/z_loss_by_layer"},
      {"ranks", "run/ranks"},
  };
  TemporaryFolder folder;
  TensorBoardLog log(folder / "tensorboard", 0);
  MetricsRecord record;
  for (const auto& [name, tag] : tags) record.emplace_back(name, 1.0);
  log.write(1, record);
  const ReadEvent event = events_of(log.path()).at(2);
  ASSERT_EQ(event.scalars.size(), tags.size());
  for (size_t i = 0; i < tags.size(); ++i) EXPECT_EQ(event.scalars[i].first, tags[i].second);
}

// Oracle: TensorBoard's own rule (plugin_event_accumulator.py): of the SessionLog.START events of a folder, each after
// the first one hides older events of its step and later ones.
TEST(TensorBoardLog, of_a_resumed_run_hides_what_comes_after_the_resumed_step) {
  TemporaryFolder folder;
  TensorBoardLog first(folder / "tensorboard", 0);
  TensorBoardLog second(folder / "tensorboard", 40);
  ASSERT_NE(first.path(), second.path());
  for (const auto& [path, step] : {std::pair{first.path(), 1}, std::pair{second.path(), 41}}) {
    const std::vector<ReadEvent> events = events_of(path);
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[1].step, step);
    EXPECT_EQ(events[1].session_status, 1);
  }
}

TEST(TensorBoardLog, a_full_disk_leaves_whole_records) {
  TemporaryFolder folder;
  TensorBoardLog log(folder / "tensorboard", 0);
  {
    FileSizeLimit full(std::filesystem::file_size(log.path()) +
                       90);  // room for one record of about 50 bytes, not for two
    for (int64_t step = 1; step <= 5; ++step) log.write(step, {{"a_rather_long_name", 1.0}});
  }
  log.write(6, {{"a_rather_long_name", 1.0}});
  const std::vector<ReadEvent> events = events_of(log.path());
  ASSERT_EQ(events.size(), 4u);  // version, start, and the steps there was room for
  EXPECT_EQ(events[2].step, 1);
  EXPECT_EQ(events[3].step, 6);
}

}  // namespace
}  // namespace conclave
