#include "checkpoint/hugging_face_files.h"

#include "base/error.h"
#include "base/shown_path.h"
#include "base/strict_json.h"
#include "base/text_file.h"

namespace conclave {
namespace {

constexpr uint64_t most_index_bytes = 100'000'000;

// The index's weight_map: tensor name to file name.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& index) {
  const std::string origin = index.string();
  const nlohmann::json json = parse_strict_json(read_text_file(index, most_index_bytes), origin);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    user_error("{} has no \"weight_map\" object, so it is not the index of a sharded model.", origin);
  }
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    if (!file.is_string())
      user_error("{}: the file of tensor \"{}\" must be a string, but is {}.", origin, tensor, file.dump());
    const auto& name = file.get_ref<const std::string&>();
    if (!name.ends_with(".safetensors") || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos) {
      user_error(
          "{}: the file of tensor \"{}\" is \"{}\", but must be the name of a .safetensors file in the same folder.",
          origin, tensor, name);
    }
    files.emplace(tensor, name);
  }
  return files;
}

}  // namespace

HuggingFaceFiles::HuggingFaceFiles(const std::filesystem::path& folder) : folder_(folder) {
  if (!is_folder(folder)) {
    user_error("{} is not a folder. Give the folder of a Hugging Face model, which holds {} or {}.", shown_path(folder),
               single_file_name, index_file_name);
  }
  if (has_name(folder / single_file_name)) {
    files_.emplace_back(folder / single_file_name);
    for (const StoredTensor& tensor : files_[0].tensors()) file_of_tensor_.emplace(tensor.name, 0);
  } else if (has_name(folder / index_file_name)) {
    open_shards(folder / index_file_name);
  } else if (has_name(folder / "pytorch_model.bin") || has_name(folder / "pytorch_model.bin.index.json")) {
    user_error(
        "{} holds pytorch_model.bin files, which are not read. Load the model with Transformers and save it with "
        "save_pretrained, "
        "which writes safetensors.",
        folder.string());
  } else {
    user_error("{} holds neither {} nor {}.", folder.string(), single_file_name, index_file_name);
  }
}

void HuggingFaceFiles::open_shards(const std::filesystem::path& index) {
  const std::map<std::string, std::string> weight_map = read_weight_map(index);
  std::map<std::string, size_t> place_of_file;
  for (const auto& [tensor, file] : weight_map) place_of_file.emplace(file, 0);
  for (auto& [file, place] : place_of_file) {
    if (!has_name(folder_ / file)) user_error("{} names {}, which is not in the folder.", index.string(), file);
    place = files_.size();
    files_.emplace_back(folder_ / file);
    for (const StoredTensor& tensor : files_.back().tensors()) {
      const auto listed = weight_map.find(tensor.name);
      if (listed == weight_map.end() || listed->second != file) {
        user_error("{} holds tensor \"{}\", but {} {}.", (folder_ / file).string(), tensor.name, index.string(),
                   listed == weight_map.end() ? "does not list it" : "says it is in " + listed->second);
      }
    }
  }
  for (const auto& [tensor, file] : weight_map) {
    const size_t place = place_of_file.at(file);
    if (files_[place].find(tensor) == nullptr) {
      user_error("{} says that tensor \"{}\" is in {}, but it is not.", index.string(), tensor,
                 (folder_ / file).string());
    }
    file_of_tensor_.emplace(tensor, place);
  }
}

HuggingFaceFiles::Place HuggingFaceFiles::find(std::string_view name) const {
  const auto found = file_of_tensor_.find(name);
  if (found == file_of_tensor_.end()) return {};
  const SafetensorsReader& file = files_[found->second];
  return {&file, file.find(name)};
}

std::vector<HuggingFaceFiles::Place> HuggingFaceFiles::all() const {
  std::vector<Place> places;
  for (const SafetensorsReader& file : files_) {
    for (const StoredTensor& tensor : file.tensors()) places.push_back({&file, &tensor});
  }
  return places;
}

}  // namespace conclave
