#include "checkpoint/safetensors_header.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

// JSON text of a string. Throws on a name that is not UTF-8.
std::string quoted(const std::string& text) {
  return nlohmann::json(text).dump();
}

uint64_t bytes_of(StoredDtype dtype, int64_t numel) {
  return static_cast<uint64_t>(numel) * bits_of(dtype) / 8;
}

}  // namespace

std::optional<int64_t> checked_numel(std::span<const int64_t> shape) {
  int64_t product = 1;
  for (int64_t size : shape) {
    if (__builtin_mul_overflow(product, size, &product)) return std::nullopt;
  }
  return product;
}

std::string text_of(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

uint64_t SafetensorsHeader::checked_length(std::span<const std::byte> first_bytes, uint64_t file_bytes,
                                           const std::string& origin) {
  const auto refuse = [&](const std::string& reason) {
    user_error("{} is not a valid safetensors file: {}.", origin, reason);
  };
  if (file_bytes < 8) refuse(fmt::format("it has {} bytes, less than the 8 of the header's length", file_bytes));
  check_invariant(first_bytes.size() >= 8, "{} bytes of a file of {}", first_bytes.size(), file_bytes);
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < 8; ++i) header_bytes |= static_cast<uint64_t>(first_bytes[i]) << (8 * i);
  if (header_bytes > most_header_bytes) {
    refuse(fmt::format("its header is said to have {} bytes, more than the format's limit of {}", header_bytes,
                       most_header_bytes));
  }
  if (header_bytes > file_bytes - 8) {
    refuse(fmt::format("its header is said to have {} bytes, but the file has only {}", header_bytes, file_bytes));
  }
  return header_bytes;
}

int64_t StoredTensor::numel() const {
  return checked_numel(shape).value();
}

std::optional<std::string> SafetensorsHeader::index_names() {
  by_name_.resize(tensors_.size());
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  std::sort(by_name_.begin(), by_name_.end(),
            [&](uint32_t a, uint32_t b) { return tensors_[a].name < tensors_[b].name; });
  for (size_t i = 1; i < by_name_.size(); ++i) {
    const std::string& name = tensors_[by_name_[i]].name;
    if (name == tensors_[by_name_[i - 1]].name) return name;
  }
  return std::nullopt;
}

const StoredTensor* SafetensorsHeader::find(std::string_view name) const {
  const auto place = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                      [&](uint32_t i, std::string_view sought) { return tensors_[i].name < sought; });
  if (place == by_name_.end() || tensors_[*place].name != name) return nullptr;
  return &tensors_[*place];
}

SafetensorsHeader SafetensorsHeader::plan(std::vector<Entry> entries, Metadata metadata) {
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name; });
  SafetensorsHeader header;
  header.metadata_ = std::move(metadata);
  uint64_t offset = 0;
  for (Entry& entry : entries) {
    const std::optional<int64_t> numel = checked_numel(entry.shape);
    check_invariant(numel.has_value() && *numel >= 0, "shape {} of {} has a size", text_of(entry.shape), entry.name);
    check_invariant(entry.name != "__metadata__", "a tensor may not be called {}", entry.name);
    const uint64_t bytes = bytes_of(entry.dtype, *numel);
    header.tensors_.push_back({std::move(entry.name), entry.dtype, std::move(entry.shape), offset, offset + bytes});
    offset += bytes;
  }
  const std::optional<std::string> twice = header.index_names();
  check_invariant(!twice, "tensor {} is stored once in a file", twice.value_or(""));

  // Offsets in the text are relative to the data, so that the text's length does not depend on itself.
  header.data_begin_ = header.to_bytes().size();
  for (StoredTensor& tensor : header.tensors_) {
    tensor.begin += header.data_begin_;
    tensor.end += header.data_begin_;
  }
  header.file_bytes_ = header.data_begin_ + offset;
  return header;
}

std::string SafetensorsHeader::to_json() const {
  std::string json = "{";
  if (!metadata_.empty()) json += "\"__metadata__\":" + nlohmann::json(metadata_).dump();
  for (const StoredTensor& tensor : tensors_) {
    if (json.size() > 1) json += ',';
    fmt::format_to(std::back_inserter(json), R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                   quoted(tensor.name), name_of(tensor.dtype), fmt::join(tensor.shape, ","), tensor.begin - data_begin_,
                   tensor.end - data_begin_);
  }
  return json + "}";
}

std::string SafetensorsHeader::to_bytes() const {
  std::string json = to_json();
  json.resize((json.size() + 7) / 8 * 8, ' ');
  check_invariant(json.size() <= most_header_bytes, "a header of {} bytes, more than the format's {}", json.size(),
                  most_header_bytes);
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(static_cast<uint64_t>(json.size()) >> (8 * i) & 0xff);
  return bytes + json;
}

}  // namespace conclave
