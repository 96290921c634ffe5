// A safetensors file opened for reading: its header is checked whole, its data read only where asked, in bounded
// blocks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "checkpoint/file.h"
#include "checkpoint/safetensors_header.h"

namespace conclave {

class SafetensorsReader {
 public:
  // UserError naming file, reason and values for everything that is not a valid safetensors file; nothing is allocated
  // for a header that does not fit the file.
  explicit SafetensorsReader(const std::filesystem::path& path);

  const File& file() const { return file_; }
  std::span<const StoredTensor> tensors() const { return header_.tensors(); }  // in file order
  const Metadata& metadata() const { return header_.metadata(); }
  const StoredTensor* find(std::string_view name) const { return header_.find(name); }  // null: there is none
  const StoredTensor& at(std::string_view name) const;                                  // UserError: there is none

  // Fills `out` (contiguous, any device) with elements [begin, begin + out.numel()) of the row-major flattened tensor.
  // `out` has the stored type, or is fp32 while the stored type is any of F64 F32 F16 BF16 F8_E4M3 F8_E5M2 (F64 is
  // rounded to nearest). UserError for other pairs of types.
  void read(std::string_view name, int64_t begin, const at::Tensor& out) const;

  // The whole tensor in its stored type and shape, on the CPU: for small tensors.
  at::Tensor read_whole(std::string_view name) const;

 private:
  File file_;
  SafetensorsHeader header_;
};

// The memory of a contiguous CPU tensor.
std::span<std::byte> memory_of(const at::Tensor& tensor);

}  // namespace conclave
