#include "metrics/tensorboard.h"

#include <fmt/core.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>

#include "event.pb.h"

namespace conclave {
namespace {

static_assert(std::endian::native == std::endian::little, "TFRecord fields are copied as they lie in memory");

constexpr std::array<uint32_t, 256> make_crc32c_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t remainder = byte;
    for (int bit = 0; bit < 8; ++bit) remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? 0x82f63b78u : 0u);
    table[byte] = remainder;
  }
  return table;
}

constexpr std::array<uint32_t, 256> crc32c_table = make_crc32c_table();

uint32_t masked_crc32c(std::string_view bytes) {
  const uint32_t crc = crc32c(bytes);
  return std::rotr(crc, 15) + 0xa282ead8u;
}

template <class Integer>
std::string_view bytes_of(const Integer& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

double seconds_since_1970() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// TensorBoard takes every file of a folder whose name contains "tfevents", in the order of the names. A time alone does
// not tell two runs of one second apart, hence host, process and a number.
std::filesystem::path new_event_file(const std::filesystem::path& folder) {
  std::filesystem::create_directories(folder);
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host = {"localhost"};
  for (int number = 0;; ++number) {
    std::filesystem::path path =
        folder / fmt::format("events.out.tfevents.{:010}.{}.{}.{}", static_cast<int64_t>(seconds_since_1970()),
                             host.data(), ::getpid(), number);
    if (!std::filesystem::exists(path)) return path;
  }
}

tensorboard::Event event_at(int64_t step) {
  tensorboard::Event event;
  event.set_wall_time(seconds_since_1970());
  event.set_step(step);
  return event;
}

void add_scalar(tensorboard::Summary& summary, const std::string& tag, double value) {
  tensorboard::Summary::Value& entry = *summary.add_value();
  entry.set_tag(tag);
  entry.set_simple_value(static_cast<float>(value));
}

void add_metric(tensorboard::Summary& summary, const std::string& name, const MetricValue& metric);

// By the layers' numbers in the model; those without experts have no tag.
template <class Value>
void add_layers(tensorboard::Summary& summary, const std::string& name,
                const std::vector<std::optional<Value>>& of_layers) {
  for (size_t layer = 0; layer < of_layers.size(); ++layer)
    if (of_layers[layer]) add_metric(summary, fmt::format("{}/{}", name, layer), *of_layers[layer]);
}

// TensorBoard shows texts as Markdown: in an indented block the letters stay as they are.
void add_text(tensorboard::Summary& summary, const std::string& tag, const std::string& text) {
  constexpr int dtype_of_strings = 7;  // DT_STRING
  std::string block = "    ";
  for (const char letter : text) block += letter == '\n' ? "\n    " : std::string(1, letter);
  tensorboard::Summary::Value& entry = *summary.add_value();
  entry.set_tag(tag);
  entry.mutable_metadata()->mutable_plugin_data()->set_plugin_name("text");
  entry.mutable_tensor()->set_dtype(dtype_of_strings);
  entry.mutable_tensor()->mutable_tensor_shape()->add_dim()->set_size(1);
  entry.mutable_tensor()->add_string_val(block);
}

void add_metric(tensorboard::Summary& summary, const std::string& name, const MetricValue& metric) {
  if (const auto* integer = std::get_if<int64_t>(&metric)) {
    add_scalar(summary, name, static_cast<double>(*integer));
  } else if (const auto* real = std::get_if<double>(&metric)) {
    add_scalar(summary, name, *real);
  } else if (const auto* text = std::get_if<std::string>(&metric)) {
    if (name.starts_with("sample/")) add_text(summary, name, *text);
  } else if (const auto* list = std::get_if<std::vector<double>>(&metric)) {
    for (size_t i = 0; i < list->size(); ++i) add_scalar(summary, fmt::format("{}/{}", name, i), (*list)[i]);
  } else if (const auto* numbers = std::get_if<LayerNumbers>(&metric)) {
    add_layers(summary, name, *numbers);
  } else if (const auto* rows = std::get_if<LayerRows>(&metric)) {
    add_layers(summary, name, *rows);
  }
}

// What a name says of its group, the first that fits. An empty part fits every name.
struct TagRule {
  std::string_view begins;
  std::string_view ends;
  std::string_view group;
};
constexpr TagRule tag_rules[] = {
    {"validation_", "", "validation/"},  // instead of the beginning, which the group repeats
    {"expert_", "", "experts/"},
    {"load_entropy", "", "experts/"},
    {"router_confidence", "", "experts/"},
    {"dead_experts", "", "experts/"},
    {"drop_rate", "", "experts/"},
    {"", "_by_layer", "experts/"},
    {"save", "", "checkpoints/"},
    {"failed_saves", "", "checkpoints/"},
    {"peak_", "_bytes", "memory/"},
    {"", "_seconds", "speed/"},
    {"tokens_per_second", "", "speed/"},
    {"mfu", "", "speed/"},
    {"ranks", "", "run/"},
    {"started_after", "", "run/"},
};

// TensorBoard draws the tags that begin alike, up to the first slash, in one group.
std::string tag_of(std::string_view name) {
  if (name.find('/') != std::string_view::npos) return std::string(name);
  for (const TagRule& rule : tag_rules) {
    if (!name.starts_with(rule.begins) || !name.ends_with(rule.ends)) continue;
    if (rule.group == "validation/") name.remove_prefix(rule.begins.size());
    return std::string(rule.group) + std::string(name);
  }
  return "train/" + std::string(name);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (char byte : bytes) crc = (crc >> 8) ^ crc32c_table[(crc ^ static_cast<uint8_t>(byte)) & 0xffu];
  return ~crc;
}

std::string tfrecord(std::string_view payload) {
  const auto length = static_cast<uint64_t>(payload.size());
  const uint32_t length_crc = masked_crc32c(bytes_of(length));
  const uint32_t payload_crc = masked_crc32c(payload);
  std::string record;
  record.reserve(sizeof length + sizeof length_crc + payload.size() + sizeof payload_crc);
  record += bytes_of(length);
  record += bytes_of(length_crc);
  record += payload;
  record += bytes_of(payload_crc);
  return record;
}

TensorBoardLog::TensorBoardLog(const std::filesystem::path& folder, int64_t resumed_step)
    : path_(new_event_file(folder)), file_(path_) {
  tensorboard::Event version = event_at(0);
  version.set_file_version("brain.Event:2");
  file_.append(tfrecord(version.SerializeAsString()));
  // "START at step n" makes TensorBoard drop what older files say of steps >= n. It takes the first START of a run for
  // its beginning, so that the first file needs one too.
  tensorboard::Event start = event_at(resumed_step + 1);
  start.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  file_.append(tfrecord(start.SerializeAsString()));
}

void TensorBoardLog::write(int64_t step, const MetricsRecord& record) {
  tensorboard::Event event = event_at(step);
  for (const auto& [name, value] : record) add_metric(*event.mutable_summary(), tag_of(name), value);
  if (event.summary().value_size() > 0) file_.append(tfrecord(event.SerializeAsString()));
}

}  // namespace conclave
