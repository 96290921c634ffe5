// The safetensors files of a Hugging Face folder: `model.safetensors`, or shards listed by
// `model.safetensors.index.json`. All headers are read and checked against the index; no data is.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/safetensors_reader.h"

namespace conclave {

inline constexpr const char* single_file_name = "model.safetensors";
inline constexpr const char* index_file_name = "model.safetensors.index.json";
inline constexpr const char* generation_config_file_name = "generation_config.json";

class HuggingFaceFiles {
 public:
  // As Transformers and conclave.load_pretrained do, takes the single file where both forms exist, whatever the index
  // says. UserError naming the file: neither form is
  // there; an invalid file; an index that is malformed, names a file that is not there or a tensor that its file lacks,
  // or does not name a tensor that a file has.
  explicit HuggingFaceFiles(const std::filesystem::path& folder);

  const std::filesystem::path& folder() const { return folder_; }
  // The file that holds a tensor, with the tensor's description; nulls: none does.
  struct Place {
    const SafetensorsReader* file = nullptr;
    const StoredTensor* tensor = nullptr;
  };
  Place find(std::string_view name) const;
  std::vector<Place> all() const;  // by file, then in file order

 private:
  void open_shards(const std::filesystem::path& index);

  std::filesystem::path folder_;
  std::vector<SafetensorsReader> files_;
  std::map<std::string, size_t, std::less<>> file_of_tensor_;  // into files_
};

}  // namespace conclave
