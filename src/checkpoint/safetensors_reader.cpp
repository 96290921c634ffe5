#include "checkpoint/safetensors_reader.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"

namespace conclave {
namespace {

SafetensorsHeader read_header(const File& file) {
  const std::string origin = file.path().string();
  const uint64_t file_bytes = file.size();
  std::array<std::byte, 8> length{};
  const std::span<std::byte> first_bytes = std::span(length).first(std::min<uint64_t>(file_bytes, 8));
  file.read(0, first_bytes);
  const uint64_t header_bytes = SafetensorsHeader::checked_length(first_bytes, file_bytes, origin);
  std::string json(header_bytes, '\0');
  file.read(8, std::as_writable_bytes(std::span(json)));
  return SafetensorsHeader::parse(json, file_bytes, origin);
}

}  // namespace

std::span<std::byte> memory_of(const at::Tensor& tensor) {
  check_invariant(tensor.is_cpu() && tensor.is_contiguous(),
                  "the bytes of a tensor are asked of a contiguous CPU tensor");
  return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

SafetensorsReader::SafetensorsReader(const std::filesystem::path& path)
    : file_(File::open_for_reading(path)), header_(read_header(file_)) {}

const StoredTensor& SafetensorsReader::at(std::string_view name) const {
  const StoredTensor* tensor = find(name);
  if (tensor == nullptr) user_error("{} has no tensor \"{}\".", file_.path().string(), name);
  return *tensor;
}

void SafetensorsReader::read(std::string_view name, int64_t begin, const at::Tensor& out) const {
  const StoredTensor& tensor = at(name);
  check_invariant(begin >= 0 && out.numel() <= tensor.numel() && begin <= tensor.numel() - out.numel(),
                  "elements [{}, {}) lie in tensor {} of {} elements", begin, begin + out.numel(), name,
                  tensor.numel());
  check_invariant(out.is_contiguous(), "tensor {} is read into contiguous memory", name);
  const std::optional<at::ScalarType> stored = scalar_type_of(tensor.dtype);
  const bool same = stored == out.scalar_type();
  if (!same && !(out.scalar_type() == at::kFloat && converts_to_fp32(tensor.dtype))) {
    user_error("tensor \"{}\" in {} is {}, which cannot be read as {}.", name, file_.path().string(),
               name_of(tensor.dtype), c10::toString(out.scalar_type()));
  }
  const auto element_bytes = static_cast<int64_t>(bits_of(tensor.dtype) / 8);
  const uint64_t offset = tensor.begin + static_cast<uint64_t>(begin * element_bytes);
  if (same && out.is_cpu()) {
    file_.read(offset, memory_of(out));
    return;
  }

  const at::NoGradGuard no_grad;
  const at::Tensor flat = out.view(-1);
  const int64_t elements_per_block = std::min(flat.numel(), block_bytes / element_bytes);
  const at::Tensor block = at::empty({elements_per_block}, at::TensorOptions(*stored));
  for (int64_t done = 0; done < flat.numel(); done += elements_per_block) {
    const int64_t count = std::min(elements_per_block, flat.numel() - done);
    const at::Tensor part = block.narrow(0, 0, count);
    file_.read(offset + static_cast<uint64_t>(done * element_bytes), memory_of(part));
    flat.narrow(0, done, count).copy_(part);
  }
}

at::Tensor SafetensorsReader::read_whole(std::string_view name) const {
  const StoredTensor& tensor = at(name);
  const std::optional<at::ScalarType> stored = scalar_type_of(tensor.dtype);
  if (!stored)
    user_error("tensor \"{}\" in {} is {}, which no tensor can hold.", name, file_.path().string(),
               name_of(tensor.dtype));
  at::Tensor out = at::empty(tensor.shape, at::TensorOptions(*stored));
  read(name, 0, out);
  return out;
}

}  // namespace conclave
