// What one process does to stored checkpoints without ranks: other files, an average, Hugging Face's form in and out.
// All stream block by block; beside blocks (8 MiB each, one for every checkpoint that is read) only names, shapes and
// hashes are in memory, whatever the size of the model. Everything that is read is held against its hashes.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "checkpoint/checkpoint_blocks.h"
#include "checkpoint/hugging_face_export.h"
#include "checkpoint/output_folder.h"

namespace conclave {

// The same checkpoint in `files` files of equal size.
void reshard_checkpoint(CheckpointReader& from, const std::filesystem::path& to, int64_t files, Overwrite overwrite,
                        const BytesDone& done);

// The mean of the parameters of several checkpoints (>= 2) of one model: summed in fp32 in the order given, then
// divided. Everything else, the optimizer's moments among it, is the last one's. UserError, before anything is written,
// when they have not the same tensors.
void average_checkpoints(std::span<const std::filesystem::path> from, const std::filesystem::path& to,
                         Overwrite overwrite, const BytesDone& done);

// The parameters as a Hugging Face folder. `names` lists the whole model. UserError when the checkpoint is not of this
// model.
void export_checkpoint(CheckpointReader& from, std::span<const DiskNames> names, const std::filesystem::path& to,
                       const HuggingFaceExportOptions& options, const BytesDone& done);

// A Hugging Face folder as a checkpoint to resume from: its parameters in fp32, and zeros for what the optimizer keeps
// of each (`zeros`, by its names).
void import_hugging_face(const std::filesystem::path& from, std::span<const DiskNames> names,
                         std::span<const std::string> zeros, const CheckpointState& state,
                         const std::filesystem::path& to, Overwrite overwrite, const BytesDone& done);

// What the two above report as done in the end: the bytes of the tensors that they write.
uint64_t bytes_of_export(std::span<const DiskNames> names, at::ScalarType dtype);
uint64_t bytes_of_import(std::span<const DiskNames> names, std::span<const std::string> zeros);

}  // namespace conclave
