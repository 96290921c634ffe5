#include "checkpoint/safetensors_writer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <vector>

#include "base/atomic_file.h"
#include "base/error.h"
#include "checkpoint/safetensors_reader.h"

namespace conclave {
namespace {

bool converts_on_writing(at::ScalarType from, StoredDtype to) {
  return at::isFloatingType(from) && (to == StoredDtype::F32 || to == StoredDtype::BF16 || to == StoredDtype::F16);
}

}  // namespace

File create_safetensors(const std::filesystem::path& path, const SafetensorsHeader& header) {
  File file = File::create(path, header.file_bytes());
  const std::string bytes = header.to_bytes();
  file.write(0, std::as_bytes(std::span(bytes)));
  return file;
}

void write_elements(File& file, const StoredTensor& tensor, int64_t begin, const at::Tensor& data) {
  check_invariant(begin >= 0 && data.numel() <= tensor.numel() && begin <= tensor.numel() - data.numel(),
                  "elements [{}, {}) lie in tensor {} of {} elements", begin, begin + data.numel(), tensor.name,
                  tensor.numel());
  check_invariant(data.is_contiguous(), "tensor {} is written from contiguous memory", tensor.name);
  const std::optional<at::ScalarType> stored = scalar_type_of(tensor.dtype);
  const bool same = stored == data.scalar_type();
  check_invariant(same || converts_on_writing(data.scalar_type(), tensor.dtype),
                  "tensor {} of type {} can be stored as {}", tensor.name, c10::toString(data.scalar_type()),
                  name_of(tensor.dtype));
  const auto element_bytes = static_cast<int64_t>(bits_of(tensor.dtype) / 8);
  const uint64_t offset = tensor.begin + static_cast<uint64_t>(begin * element_bytes);
  if (same && data.is_cpu()) {
    file.write(offset, memory_of(data));
    return;
  }

  const at::NoGradGuard no_grad;
  const at::Tensor flat = data.view(-1);
  const int64_t elements_per_block = std::min(flat.numel(), block_bytes / element_bytes);
  const at::Tensor block = at::empty({elements_per_block}, at::TensorOptions(*stored));
  for (int64_t done = 0; done < flat.numel(); done += elements_per_block) {
    const int64_t count = std::min(elements_per_block, flat.numel() - done);
    const at::Tensor part = block.narrow(0, 0, count);
    part.copy_(flat.narrow(0, done, count));
    file.write(offset + static_cast<uint64_t>(done * element_bytes), memory_of(part));
  }
}

void write_safetensors(const std::filesystem::path& path, std::span<const std::pair<std::string, at::Tensor>> tensors,
                       const Metadata& metadata) {
  std::vector<SafetensorsHeader::Entry> entries;
  for (const auto& [name, tensor] : tensors)
    entries.push_back({name, stored_dtype_of(tensor.scalar_type()), tensor.sizes().vec()});
  const SafetensorsHeader header = SafetensorsHeader::plan(std::move(entries), metadata);

  std::filesystem::path aside = path;
  aside += ".tmp-" + std::to_string(::getpid());
  try {
    File file = create_safetensors(aside, header);
    for (const auto& [name, tensor] : tensors) write_elements(file, *header.find(name), 0, tensor.contiguous());
    file.flush();
    std::filesystem::rename(aside, path);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(aside, ignored);
    throw;
  }
  flush_to_disk(path.has_parent_path() ? path.parent_path() : std::filesystem::path("."));
}

}  // namespace conclave
