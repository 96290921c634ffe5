// A resumable checkpoint written by one process, element after element, from whatever has them: what reshard, average
// and import write. Memory: no data is kept; of the whole checkpoint only its manifest.
//
//   CheckpointStream out(folder, state, tensors, files);
//   for (each tensor, in order) for (each block of it, in order) out.append(block);
//   out.finish();
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_writer.h"
#include "checkpoint/file.h"
#include "checkpoint/manifest.h"
#include "checkpoint/output_folder.h"
#include "checkpoint/safetensors_header.h"

namespace conclave {

class BlockHash;

class CheckpointStream {
 public:
  // `files` (>= 1) files of equal size; there may be fewer of a checkpoint with fewer elements. UserError when the
  // folder is there and may not be replaced.
  CheckpointStream(const std::filesystem::path& checkpoint, CheckpointState state,
                   const std::vector<SafetensorsHeader::Entry>& tensors, int64_t files,
                   Overwrite overwrite = Overwrite::refuse, uint64_t hash_block_bytes = default_hash_block_bytes);
  ~CheckpointStream();  // unfinished: removes what was written

  // The next elements, flat, of the tensor's type, on the CPU; of one tensor.
  void append(const at::Tensor& elements);

  // After the last element: flushes, adds the manifest and publishes the folder.
  void finish();

 private:
  // Where consecutive elements of a tensor go: all of it, or its part in one of several files.
  struct Segment {
    std::string tensor;
    size_t piece;  // into the tensor's pieces
    uint64_t bytes;
  };
  void plan(const std::vector<SafetensorsHeader::Entry>& tensors, int64_t files);
  void open_file(const std::string& name);
  void close_file();
  Piece& piece_of(const Segment& segment) { return manifest_.tensors.at(segment.tensor).pieces[segment.piece]; }

  OutputFolder folder_;
  Manifest manifest_;
  std::vector<Segment> segments_;
  size_t current_ = 0;  // into segments_
  uint64_t done_ = 0;   // bytes of the current segment
  std::unique_ptr<BlockHash> hash_;
  std::optional<File> file_;
  bool finished_ = false;
};

// What the folder of a resumable checkpoint holds.
bool is_checkpoint_file(std::string_view name);

}  // namespace conclave
