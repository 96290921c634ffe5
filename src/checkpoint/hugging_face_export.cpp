#include "checkpoint/hugging_face_export.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/text_file.h"
#include "checkpoint/hugging_face_files.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/together.h"
#include "checkpoint/tokenizer_files.h"

namespace conclave {
namespace {

constexpr uint64_t most_generation_config_bytes = 1'000'000;

bool is_written_by_an_export(std::string_view file) {
  return file.ends_with(".safetensors") || file == index_file_name || file == "config.json" ||
         file == generation_config_file_name || is_tokenizer_file(file);
}

StoredDtype dtype_of(const DiskTensor& tensor, StoredDtype of_others, std::span<const std::string> in_fp32) {
  const bool is_among = std::find(in_fp32.begin(), in_fp32.end(), tensor.name) != in_fp32.end();
  return is_among ? StoredDtype::F32 : of_others;
}

}  // namespace

std::vector<std::vector<DiskTensor>> plan_shards(std::span<const DiskNames> names, StoredDtype dtype,
                                                 uint64_t max_shard_bytes, std::span<const std::string> in_fp32) {
  std::vector<std::vector<DiskTensor>> shards;
  std::vector<DiskTensor> current;
  uint64_t current_bytes = 0;
  for (const DiskNames& parameter : names) {
    for (const DiskTensor& part : parameter.parts) {
      const uint64_t bits = bits_of(dtype_of(part, dtype, in_fp32));
      const uint64_t bytes = static_cast<uint64_t>(checked_numel(part.shape).value()) * bits / 8;
      if (bytes > max_shard_bytes) {
        shards.push_back({part});
        continue;
      }
      if (!current.empty() && current_bytes + bytes > max_shard_bytes) {
        shards.push_back(std::exchange(current, {}));
        current_bytes = 0;
      }
      current.push_back(part);
      current_bytes += bytes;
    }
  }
  if (!current.empty() || shards.empty()) shards.push_back(std::move(current));
  return shards;
}

HuggingFaceExport::HuggingFaceExport(const std::filesystem::path& folder, std::span<const DiskNames> names,
                                     const HuggingFaceExportOptions& options, Communicator& world)
    : folder_(folder, options.overwrite, is_written_by_an_export, {std::string(chat_templates_folder)}),
      options_(options),
      world_(world) {
  plan(names);
  try {
    together(world_, [&] {
      if (world_.rank() == 0) create_files();
    });
  } catch (...) {
    if (world_.rank() == 0) folder_.discard();
    throw;
  }
}

HuggingFaceExport::~HuggingFaceExport() {
  if (!finished_ && world_.rank() == 0) folder_.discard();
}

void HuggingFaceExport::plan(std::span<const DiskNames> names) {
  const StoredDtype dtype = stored_dtype_of(options_.dtype);
  check_invariant(dtype == StoredDtype::F32 || dtype == StoredDtype::BF16 || dtype == StoredDtype::F16,
                  "an export as {}", name_of(dtype));
  for (const DiskNames& parameter : names) {
    const DiskParts parts(parameter, parameter.parts);
    check_invariant(parameters_.emplace(parameter.parameter, Parameter{&parameter, parts}).second,
                    "parameter {} is listed once", parameter.parameter);
    elements_total_ += checked_numel(parameter.shape).value();
  }
  const std::vector<std::vector<DiskTensor>> shards =
      plan_shards(names, dtype, options_.max_shard_bytes, options_.in_fp32);
  for (size_t i = 0; i < shards.size(); ++i) {
    file_names_.push_back(shards.size() == 1 ? single_file_name
                                             : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size()));
    std::vector<SafetensorsHeader::Entry> entries;
    for (const DiskTensor& tensor : shards[i]) {
      entries.push_back({tensor.name, dtype_of(tensor, dtype, options_.in_fp32), tensor.shape});
      check_invariant(file_of_tensor_.emplace(tensor.name, i).second, "tensor {} is listed once", tensor.name);
    }
    headers_.push_back(SafetensorsHeader::plan(std::move(entries)));
  }
  open_.resize(shards.size());
}

void HuggingFaceExport::create_files() {
  folder_.check();
  if (options_.tokenizer_folder) check_tokenizer();
  if (options_.generation_config_file)
    options_.generation_config_json = read_text_file(*options_.generation_config_file, most_generation_config_bytes);
  folder_.create();
  for (size_t i = 0; i < file_names_.size(); ++i)
    create_safetensors(folder_.aside() / file_names_[i], headers_[i]).flush();
}

void HuggingFaceExport::check_tokenizer() const {
  const std::filesystem::path& folder = *options_.tokenizer_folder;
  if (!is_folder(folder)) user_error("cannot copy the tokenizer from {}: it is not a folder.", folder.string());
  const std::optional<int64_t> ids = tokenizer_ids(folder);
  if (ids && *ids > options_.vocabulary)
    user_error(
        "the tokenizer in {} has {} ids, but the model has embeddings for {}, and a token beyond them cannot be "
        "looked up.\n       Take the model's own tokenizer, or train with model.resize_vocabulary: {}.",
        folder.string(), *ids, options_.vocabulary, *ids);
}

void HuggingFaceExport::write(const TensorSlice& slice) {
  if (failure_) return;
  try {
    write_or_throw(slice);
  } catch (...) {
    failure_ = std::current_exception();
  }
}

void HuggingFaceExport::write_or_throw(const TensorSlice& slice) {
  const auto found = parameters_.find(slice.name);
  check_invariant(found != parameters_.end(), "parameter {} has a name on disk", slice.name);
  check_invariant(slice.shape == found->second.names->shape, "parameter {} has shape {}, on disk {}", slice.name,
                  text_of(slice.shape), text_of(found->second.names->shape));
  for (const auto& overlap : found->second.parts.overlaps(slice.begin, slice.data.numel())) {
    const size_t file = file_of_tensor_.at(overlap.part->name);
    if (open_[file] == nullptr)
      open_[file] = std::make_unique<File>(File::open_for_writing(folder_.aside() / file_names_[file]));
    write_elements(*open_[file], *headers_[file].find(overlap.part->name), overlap.begin_in_part,
                   slice.data.narrow(0, overlap.begin_in_range, overlap.count));
  }
  elements_written_ += slice.data.numel();
}

void HuggingFaceExport::finish() {
  together(world_, [&] {
    if (failure_) std::rethrow_exception(failure_);
    for (const std::unique_ptr<File>& file : open_) {
      if (file != nullptr) file->flush();
    }
  });
  const at::Tensor written = at::full({1}, elements_written_, at::kLong);
  world_.all_reduce(written).wait();
  check_invariant(written.item<int64_t>() == elements_total_, "elements exported ({}) != elements of the model ({})",
                  written.item<int64_t>(), elements_total_);
  together(world_, [&] {
    if (world_.rank() != 0) return;
    write_small_files();
    folder_.publish();
  });
  finished_ = true;
}

void HuggingFaceExport::write_small_files() const {
  write_file_atomically(folder_.aside() / "config.json", options_.config_json);
  if (!options_.generation_config_json.empty())
    write_file_atomically(folder_.aside() / generation_config_file_name, options_.generation_config_json);
  if (file_names_.size() > 1) write_file_atomically(folder_.aside() / index_file_name, index_json());
  if (options_.tokenizer_folder) copy_tokenizer(*options_.tokenizer_folder, folder_.aside());
}

std::string HuggingFaceExport::index_json() const {
  nlohmann::ordered_json index;
  index["metadata"]["total_parameters"] = elements_total_;
  index["metadata"]["total_size"] =
      static_cast<uint64_t>(elements_total_) * bits_of(stored_dtype_of(options_.dtype)) / 8;
  for (const auto& [tensor, file] : file_of_tensor_) index["weight_map"][tensor] = file_names_[file];
  return index.dump(2) + "\n";
}

}  // namespace conclave
