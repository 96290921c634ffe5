// A resumable checkpoint opened for loading at any layout: each rank reads, alone, the ranges that its slices need.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "checkpoint/manifest.h"
#include "checkpoint/safetensors_reader.h"
#include "checkpoint/tensor_slice.h"

namespace conclave {

enum class HashCheck {
  verify,  // every block that is read is hashed whole: at both ends of a range up to a block more than needed is read
  skip,
};

class CheckpointReader {
 public:
  // Opens the folder `checkpoint` (.../step-00000100) and checks its structure: the manifest is whole, every file is
  // there with its length. DamagedCheckpoint naming the file and the flaw; another UserError when there is no such
  // folder, or it is of another version of the format.
  explicit CheckpointReader(const std::filesystem::path& checkpoint);

  const std::filesystem::path& path() const { return path_; }
  const CheckpointState& state() const { return manifest_.state; }
  const Manifest& manifest() const { return manifest_; }

  // UserError unless the checkpoint has exactly these tensors: names the first that is missing or left over.
  void expect_tensors(std::span<const std::string> names) const;

  // Fills `slices`, of the stored types, on any device. UserError naming the tensor (not there, other shape or type)
  // before data is read; DamagedCheckpoint naming file and tensor when a file cannot be read, or its header or a
  // block's hash does not fit the manifest: some slices may be filled by then. Beside the slices it takes one hash
  // block of memory, and the headers of the files read.
  void load(std::span<const TensorSlice> slices, HashCheck hashes = HashCheck::verify);
  int64_t bytes_read() const { return bytes_read_; }  // of tensor data, so far

 private:
  const ManifestTensor& tensor_of(const TensorSlice& slice) const;
  const SafetensorsReader& open(const std::string& file);
  void read_piece(const TensorSlice& slice, const ManifestTensor& tensor, const Piece& piece, HashCheck hashes);

  std::filesystem::path path_;
  Manifest manifest_;
  std::map<std::string, SafetensorsReader> open_;
  int64_t bytes_read_ = 0;
  at::Tensor block_;  // uint8 [hash_block_bytes], made when first needed
};

}  // namespace conclave
