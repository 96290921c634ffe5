// Writing safetensors files: whole, or ranges of tensors by several ranks into a file that was created at its full
// length.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "checkpoint/file.h"
#include "checkpoint/safetensors_header.h"

namespace conclave {

// A file of the planned length, its space reserved, its header written, its data still zeros.
File create_safetensors(const std::filesystem::path& path, const SafetensorsHeader& header);

// Writes `data` (contiguous, any device) as elements [begin, begin + data.numel()) of `tensor`, in blocks. `data` has
// the stored type, or is floating-point while the stored type is F32, BF16 or F16 (rounded to nearest, ties to even).
void write_elements(File& file, const StoredTensor& tensor, int64_t begin, const at::Tensor& data);

// Replaces `path` by a file of these tensors (any shape and device), or leaves it as it was and throws.
void write_safetensors(const std::filesystem::path& path, std::span<const std::pair<std::string, at::Tensor>> tensors,
                       const Metadata& metadata = {{"format", "pt"}});

}  // namespace conclave
