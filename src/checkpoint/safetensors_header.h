// The header of a safetensors file: which tensor lies at which bytes. A file is a little-endian u64 N, N bytes of JSON,
// then the tensors' data, row-major and little-endian, without gaps. A SafetensorsHeader always describes a valid file:
// its tensors tile the data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors_dtype.h"

namespace conclave {

inline constexpr uint64_t most_header_bytes = 100'000'000;  // the format's own limit on N

using Metadata = std::map<std::string, std::string>;

struct StoredTensor {
  std::string name;
  StoredDtype dtype = StoredDtype::F32;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the file
  uint64_t end = 0;

  int64_t numel() const;
};

class SafetensorsHeader {
 public:
  // N, from the first bytes (8, or all of a shorter file) of a file of `file_bytes` bytes. UserError when it cannot be:
  // nothing need be allocated for a header that does not fit the file.
  static uint64_t checked_length(std::span<const std::byte> first_bytes, uint64_t file_bytes,
                                 const std::string& origin);

  // Parses the N bytes of JSON of a file of `file_bytes` bytes. `origin` names the file in refusals. UserError for
  // everything that is not a valid header: broken UTF-8 or JSON, a name twice, unknown types, metadata that is neither
  // null nor string to string, overflowing shapes, lengths that do not fit shape and type, ranges that do not tile the
  // data exactly. Memory stays within a small multiple of the text.
  static SafetensorsHeader parse(std::string_view json, uint64_t file_bytes, const std::string& origin);

  // The header of a file to be written: data laid out in the reference writer's order, type descending, then name.
  // InvariantError: a name twice.
  struct Entry {
    std::string name;
    StoredDtype dtype;
    std::vector<int64_t> shape;
  };
  static SafetensorsHeader plan(std::vector<Entry> entries, Metadata metadata = {{"format", "pt"}});

  // The file's first bytes, up to the data: N, compact JSON with the metadata first, spaces up to a multiple of 8.
  std::string to_bytes() const;

  std::span<const StoredTensor> tensors() const { return tensors_; }  // in file order
  const Metadata& metadata() const { return metadata_; }
  uint64_t file_bytes() const { return file_bytes_; }
  const StoredTensor* find(std::string_view name) const;  // null: there is none

 private:
  friend class SafetensorsHeaderParser;
  // Makes by_name_. Returns the first name that comes twice, if any.
  std::optional<std::string> index_names();
  std::string to_json() const;

  std::vector<StoredTensor> tensors_;
  std::vector<uint32_t> by_name_;  // places in tensors_, ascending by name
  Metadata metadata_;
  uint64_t data_begin_ = 0;
  uint64_t file_bytes_ = 0;
};

// The product of a shape's sizes; none when it overflows 63 bits.
std::optional<int64_t> checked_numel(std::span<const int64_t> shape);

// "[2, 3]", for messages.
std::string text_of(std::span<const int64_t> shape);

}  // namespace conclave
