// A model written as a Hugging Face folder by all ranks, none of which holds it. Every rank plans the same files from
// names and shapes; rank 0 creates them at full length in a folder aside; every rank writes its ranges into them; the
// folder appears under its name when everything is on the disk.
//
//   HuggingFaceExport out(folder, names, options, world);
//   for (const TensorSlice& slice : slices_to_write) out.write(slice);
//   out.finish();
#pragma once

#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/disk_parts.h"
#include "checkpoint/file.h"
#include "checkpoint/output_folder.h"
#include "checkpoint/safetensors_header.h"
#include "checkpoint/tensor_slice.h"
#include "comm/communicator.h"

namespace conclave {

struct HuggingFaceExportOptions {
  at::ScalarType dtype = at::kFloat;         // on disk: fp32, bf16 or fp16
  std::vector<std::string> in_fp32 = {};     // tensors that are fp32 all the same
  uint64_t max_shard_bytes = 5'000'000'000;  // of data in a file; a larger tensor gets a file of its own
  std::string config_json;                   // the text of config.json
  std::string generation_config_json;        // empty: none is written
  std::optional<std::filesystem::path> generation_config_file;  // copied instead

  // Whose tokenizer and chat templates (tokenizer_files.h), as far as they are there, are copied. A tokenizer with more
  // ids than `vocabulary`, the model's, is refused.
  std::optional<std::filesystem::path> tokenizer_folder;
  int64_t vocabulary = 0;

  // replace: an existing folder is replaced at the end, if all it holds is what an export writes.
  Overwrite overwrite = Overwrite::refuse;
};

// The tensors of each file: in order, a new file begun when the next tensor would exceed `max_shard_bytes`, as
// Transformers does.
std::vector<std::vector<DiskTensor>> plan_shards(std::span<const DiskNames> names, StoredDtype dtype,
                                                 uint64_t max_shard_bytes, std::span<const std::string> in_fp32 = {});

class HuggingFaceExport {
 public:
  // Collective: creates the files. UserError when the folder is there and may not be replaced. `names` must outlive
  // this. `world` must take CPU tensors (see HostTensors). Failures here and in finish() are thrown on all ranks alike.
  HuggingFaceExport(const std::filesystem::path& folder, std::span<const DiskNames> names,
                    const HuggingFaceExportOptions& options, Communicator& world);
  ~HuggingFaceExport();  // unfinished: rank 0 removes the folder aside

  // This rank's part of a parameter, floating-point, on any device. All slices of all ranks must together cover every
  // parameter once: of ranks that hold the same range one writes. A failure to write is kept for finish(), where all
  // ranks hear of it.
  void write(const TensorSlice& slice);

  // Collective: flushes, checks that every element was written, adds configuration, tokenizer and index, publishes the
  // folder.
  void finish();

 private:
  struct Parameter {
    const DiskNames* names;
    DiskParts parts;
  };
  void plan(std::span<const DiskNames> names);
  void create_files();
  void check_tokenizer() const;
  void write_or_throw(const TensorSlice& slice);
  void write_small_files() const;
  std::string index_json() const;

  OutputFolder folder_;
  HuggingFaceExportOptions options_;
  Communicator& world_;
  std::map<std::string, Parameter, std::less<>> parameters_;
  std::vector<std::string> file_names_;
  std::vector<SafetensorsHeader> headers_;        // of each file
  std::map<std::string, size_t> file_of_tensor_;  // into file_names_
  std::vector<std::unique_ptr<File>> open_;       // of each file; null until this rank writes to it
  int64_t elements_total_ = 0;
  int64_t elements_written_ = 0;  // by this rank
  std::exception_ptr failure_;    // the first failed write()
  bool finished_ = false;
};

}  // namespace conclave
