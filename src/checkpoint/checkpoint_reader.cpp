#include "checkpoint/checkpoint_reader.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <xxhash.h>

#include <algorithm>
#include <set>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "base/text_file.h"
#include "checkpoint/damaged_checkpoint.h"

namespace conclave {
namespace {

// What cannot be read is damage too, whether the file or its disk is at fault.
template <class Read>
auto damage_if_unreadable(const std::filesystem::path& checkpoint, Read&& read) {
  try {
    return read();
  } catch (const UserError& error) {
    damaged("checkpoint {} is damaged: {}", checkpoint.string(), error.what());
  } catch (const std::system_error& error) {
    damaged("checkpoint {} is damaged: {}.", checkpoint.string(), error.what());
  }
}

Manifest read_manifest(const std::filesystem::path& checkpoint) {
  const std::filesystem::path path = checkpoint / manifest_file_name;
  if (!std::filesystem::is_directory(checkpoint)) user_error("there is no checkpoint {}.", checkpoint.string());
  if (!std::filesystem::exists(path))
    damaged("{} is not a checkpoint: it has no {}.", checkpoint.string(), manifest_file_name);
  return parse_manifest(damage_if_unreadable(checkpoint, [&] { return read_text_file(path, most_manifest_bytes); }),
                        path.string());
}

}  // namespace

CheckpointReader::CheckpointReader(const std::filesystem::path& checkpoint)
    : path_(checkpoint), manifest_(read_manifest(checkpoint)) {
  for (const auto& [name, bytes] : manifest_.files) {
    const std::filesystem::path file = path_ / name;
    std::error_code error;
    const bool is_there = std::filesystem::is_regular_file(file, error);
    if (!is_there) damaged("checkpoint {} is damaged: its file {} is missing.", path_.string(), name);
    const uint64_t actual = std::filesystem::file_size(file);
    if (actual != bytes)
      damaged("checkpoint {} is damaged: its file {} has {} bytes instead of {}.", path_.string(), name, actual, bytes);
  }
}

void CheckpointReader::expect_tensors(std::span<const std::string> names) const {
  const std::set<std::string_view> expected(names.begin(), names.end());
  for (std::string_view name : expected) {
    if (!manifest_.tensors.contains(std::string(name)))
      user_error("checkpoint {} has no tensor \"{}\".", path_.string(), name);
  }
  for (const auto& [name, tensor] : manifest_.tensors) {
    if (!expected.contains(name))
      user_error("checkpoint {} has tensor \"{}\", which this job has no use for.", path_.string(), name);
  }
}

const ManifestTensor& CheckpointReader::tensor_of(const TensorSlice& slice) const {
  const auto found = manifest_.tensors.find(slice.name);
  if (found == manifest_.tensors.end()) user_error("checkpoint {} has no tensor \"{}\".", path_.string(), slice.name);
  const ManifestTensor& tensor = found->second;
  if (tensor.shape != slice.shape) {
    user_error("tensor \"{}\" has shape {} in checkpoint {}, but {} in this job.", slice.name, text_of(tensor.shape),
               path_.string(), text_of(slice.shape));
  }
  if (scalar_type_of(tensor.dtype) != slice.data.scalar_type()) {
    user_error("tensor \"{}\" is {} in checkpoint {}, but {} in this job.", slice.name, name_of(tensor.dtype),
               path_.string(), c10::toString(slice.data.scalar_type()));
  }
  check_invariant(slice.data.dim() == 1 && slice.data.is_contiguous(), "slice of {} is flat", slice.name);
  check_invariant(slice.begin >= 0 && slice.begin + slice.data.numel() <= checked_numel(slice.shape),
                  "slice [{}, {}) lies in {} {}", slice.begin, slice.begin + slice.data.numel(), slice.name,
                  text_of(slice.shape));
  return tensor;
}

void CheckpointReader::load(std::span<const TensorSlice> slices, HashCheck hashes) {
  for (const TensorSlice& slice : slices) tensor_of(slice);
  const at::NoGradGuard no_grad;
  for (const TensorSlice& slice : slices) {
    const ManifestTensor& tensor = tensor_of(slice);
    // The first piece that ends after the slice's begin.
    auto piece = std::upper_bound(tensor.pieces.begin(), tensor.pieces.end(), slice.begin,
                                  [](int64_t begin, const Piece& p) { return begin < p.end; });
    for (; piece != tensor.pieces.end() && piece->begin < slice.begin + slice.data.numel(); ++piece)
      read_piece(slice, tensor, *piece, hashes);
  }
}

const SafetensorsReader& CheckpointReader::open(const std::string& file) {
  constexpr size_t most_open = 64;  // far below the limit on open files, which a job of many ranks would reach
  if (open_.size() == most_open && !open_.contains(file)) open_.clear();
  const auto found = open_.find(file);
  if (found != open_.end()) return found->second;
  return open_.emplace(file, damage_if_unreadable(path_, [&] { return SafetensorsReader(path_ / file); }))
      .first->second;
}

void CheckpointReader::read_piece(const TensorSlice& slice, const ManifestTensor& tensor, const Piece& piece,
                                  HashCheck hashes) {
  const SafetensorsReader& reader = open(piece.file);
  const std::string name = piece_name(slice.name, piece);
  const StoredTensor* stored = reader.find(name);
  const auto element_bytes = static_cast<int64_t>(bits_of(tensor.dtype) / 8);
  const auto piece_bytes = static_cast<uint64_t>((piece.end - piece.begin) * element_bytes);
  if (stored == nullptr || stored->begin != piece.offset || stored->end - stored->begin != piece_bytes ||
      stored->dtype != tensor.dtype) {
    damaged(
        "checkpoint {} is damaged: its file {} does not hold \"{}\" where the manifest says. Was the file exchanged?",
        path_.string(), piece.file, name);
  }

  const int64_t elements_per_block = static_cast<int64_t>(manifest_.hash_block_bytes) / element_bytes;
  const int64_t wanted_begin = std::max(slice.begin, piece.begin);
  const int64_t wanted_end = std::min(slice.begin + slice.data.numel(), piece.end);
  for (int64_t index = (wanted_begin - piece.begin) / elements_per_block;; ++index) {
    const int64_t block_begin = piece.begin + index * elements_per_block;
    if (block_begin >= wanted_end) break;
    const int64_t block_end = std::min(block_begin + elements_per_block, piece.end);
    const int64_t use_begin = std::max(block_begin, wanted_begin);
    const int64_t use_end = std::min(block_end, wanted_end);
    // What is read: the whole block when it is to be hashed, else the part that is used.
    const int64_t read_begin = hashes == HashCheck::verify ? block_begin : use_begin;
    const int64_t read_end = hashes == HashCheck::verify ? block_end : use_end;
    const at::Tensor target = slice.data.narrow(0, use_begin - slice.begin, use_end - use_begin);
    const bool directly = target.is_cpu() && read_begin == use_begin && read_end == use_end;
    if (!directly && !block_.defined())
      block_ = at::empty({static_cast<int64_t>(manifest_.hash_block_bytes)}, at::kByte);
    const std::span<std::byte> bytes =
        directly ? memory_of(target)
                 : memory_of(block_).first(static_cast<size_t>((read_end - read_begin) * element_bytes));

    try {
      reader.file().read(piece.offset + static_cast<uint64_t>((read_begin - piece.begin) * element_bytes), bytes);
    } catch (const std::exception& error) {
      damaged("checkpoint {} is damaged: elements [{}, {}) of tensor \"{}\" cannot be read: {}", path_.string(),
              read_begin, read_end, slice.name, error.what());
    }
    bytes_read_ += static_cast<int64_t>(bytes.size());
    if (hashes == HashCheck::verify &&
        XXH3_64bits(bytes.data(), bytes.size()) != piece.hashes[static_cast<size_t>(index)]) {
      damaged("checkpoint {} is damaged: elements [{}, {}) of tensor \"{}\" in its file {} do not fit their hash.",
              path_.string(), block_begin, block_end, slice.name, piece.file);
    }
    if (!directly) {
      const at::Tensor block =
          block_.narrow(0, 0, (read_end - read_begin) * element_bytes).view(slice.data.scalar_type());
      target.copy_(block.narrow(0, use_begin - read_begin, use_end - use_begin));
    }
  }
}

}  // namespace conclave
