// Any bytes as a safetensors file: refused as a user's mistake, or a header that holds what safetensors_header.h
// promises. Oracle: the promises, checked here by plain loops, and the header read back from what it writes of itself.
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string>

#include "base/error.h"
#include "checkpoint/safetensors_header.h"

namespace {

void must(bool holds) {
  if (!holds) std::abort();
}

// Tensors in file order, each with the bytes its shape and type need, covering all bytes after the header once.
void check(const conclave::SafetensorsHeader& header, uint64_t header_end, uint64_t file_bytes) {
  uint64_t covered = header_end;
  for (const conclave::StoredTensor& tensor : header.tensors()) {
    __uint128_t bits = bits_of(tensor.dtype);
    for (int64_t size : tensor.shape) {
      must(size >= 0);
      bits *= static_cast<uint64_t>(size);  // no overflow: the product of sizes fits 63 bits, or the header is refused
    }
    must(bits == static_cast<__uint128_t>(tensor.end - tensor.begin) * 8);
    must(tensor.begin == covered && tensor.end >= tensor.begin && tensor.end <= file_bytes);
    must(header.find(tensor.name) == &tensor);
    covered = tensor.end;
  }
  must(covered == file_bytes && header.file_bytes() == file_bytes);
}

void check_rewritten(const conclave::SafetensorsHeader& header) {
  std::string bytes = header.to_bytes();
  const uint64_t header_bytes = bytes.size() - 8;
  const uint64_t data_bytes =
      header.tensors().empty() ? 0 : header.tensors().back().end - header.tensors().front().begin;
  const auto again =
      conclave::SafetensorsHeader::parse(std::string_view(bytes).substr(8), 8 + header_bytes + data_bytes, "again");
  must(again.metadata() == header.metadata() && again.tensors().size() == header.tensors().size());
  for (const conclave::StoredTensor& tensor : header.tensors()) {
    const conclave::StoredTensor* other = again.find(tensor.name);
    must(other != nullptr && other->dtype == tensor.dtype && other->shape == tensor.shape);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;
  try {
    const auto bytes = std::as_bytes(std::span(data, size));
    const uint64_t header_bytes =
        SafetensorsHeader::checked_length(bytes.first(std::min<size_t>(size, 8)), size, "fuzz");
    const std::string_view json(reinterpret_cast<const char*>(data) + 8, header_bytes);
    const SafetensorsHeader header = SafetensorsHeader::parse(json, size, "fuzz");
    check(header, 8 + header_bytes, size);
    check_rewritten(header);
  } catch (const UserError&) {
  }
  return 0;
}
