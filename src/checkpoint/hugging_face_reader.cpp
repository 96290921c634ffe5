#include "checkpoint/hugging_face_reader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "base/error.h"

namespace conclave {
namespace {

// Whether two tensors of one shape hold the same values; of different types: once they are fp32.
bool same_values(const HuggingFaceFiles::Place& a, const HuggingFaceFiles::Place& b) {
  const int64_t numel = a.tensor->numel();
  const int64_t per_block = std::min<int64_t>(numel, block_bytes / sizeof(float));
  const at::Tensor memory = at::empty({2, per_block}, at::kFloat);
  for (int64_t begin = 0; begin < numel; begin += per_block) {
    const int64_t count = std::min(per_block, numel - begin);
    const at::Tensor blocks[] = {memory[0].narrow(0, 0, count), memory[1].narrow(0, 0, count)};
    a.file->read(a.tensor->name, begin, blocks[0]);
    b.file->read(b.tensor->name, begin, blocks[1]);
    if (std::memcmp(blocks[0].data_ptr(), blocks[1].data_ptr(), blocks[0].nbytes()) != 0) return false;
  }
  return true;
}

void check_part(const DiskTensor& part, const DiskNames& names, const HuggingFaceFiles& files) {
  const auto [file, tensor] = files.find(part.name);
  if (tensor == nullptr) {
    user_error(
        "{} has no tensor \"{}\", which parameter {} needs. Is this the model that config.json describes?{}",
        files.folder().string(), part.name, names.parameter,
        part.name == "lm_head.weight" ? " If its head is its embedding, tie_word_embeddings must be true there." : "");
  }
  if (tensor->shape != part.shape) {
    user_error("tensor \"{}\" in {} has shape {}, but the model's configuration makes it {}.", part.name,
               file->file().path().string(), text_of(tensor->shape), text_of(part.shape));
  }
  if (!converts_to_fp32(tensor->dtype)) {
    user_error("tensor \"{}\" in {} is stored as {}. Weights are read from F64, F32, F16, BF16, F8_E4M3 and F8_E5M2.",
               part.name, file->file().path().string(), name_of(tensor->dtype));
  }
}

}  // namespace

std::span<const DiskTensor> form_of(const DiskNames& names, const HuggingFaceFiles& files) {
  const auto any_is_there = [&](std::span<const DiskTensor> parts) {
    for (const DiskTensor& part : parts) {
      if (is_stored(files, part.name)) return true;
    }
    return false;
  };
  if (!any_is_there(names.parts) && any_is_there(names.alternative)) return names.alternative;
  return names.parts;
}

HuggingFaceReader::HuggingFaceReader(const std::filesystem::path& folder, std::span<const DiskNames> names,
                                     const std::string& left_out)
    : files_(folder) {
  std::set<std::string> claimed;
  for (const DiskNames& parameter : names) {
    const std::span<const DiskTensor> form = form_of(parameter, files_);
    for (const DiskTensor& part : form) {
      std::unique_ptr<QuantizedTensor> quantized = find_quantized(files_, part);
      if (quantized == nullptr || files_.find(part.name).tensor != nullptr) check_part(part, parameter, files_);
      claimed.insert(part.name);
      if (quantized == nullptr) continue;
      claimed.insert(quantized->stored().begin(), quantized->stored().end());
      quantized_.emplace(part.name, std::move(quantized));
    }
    parameters_.emplace(parameter.parameter, Parameter{&parameter, DiskParts(parameter, form)});
  }
  for (const auto& [file, tensor] : files_.all()) {
    if (claimed.contains(tensor->name) || tensor->name.ends_with(".rotary_emb.inv_freq")) continue;
    if (!left_out.empty() && tensor->name.starts_with(left_out)) continue;
    if (is_the_same_under_another_name({file, tensor}, names)) continue;
    user_error(
        "{} holds tensor \"{}\" of shape {}, which this model has no parameter for. Is this the model that config.json "
        "describes?",
        file->file().path().string(), tensor->name, text_of(tensor->shape));
  }
}

// A tied head is often stored beside the embedding; it must be the same.
bool HuggingFaceReader::is_the_same_under_another_name(const HuggingFaceFiles::Place& place,
                                                       std::span<const DiskNames> names) const {
  for (const DiskNames& parameter : names) {
    if (parameter.parts.size() != 1 || parameter.alternative.size() != 1) continue;
    if (parameter.alternative[0].name != place.tensor->name) continue;
    const HuggingFaceFiles::Place other = files_.find(parameter.parts[0].name);
    check_part(parameter.alternative[0], parameter, files_);
    if (same_values(place, other)) return true;
    user_error(
        "{} holds \"{}\" and \"{}\" with different values, but they are one parameter of this model, {}.\n       Set "
        "tie_word_embeddings to false in config.json if the model was trained with two, or remove one of the tensors.",
        place.file->file().path().string(), place.tensor->name, other.tensor->name, parameter.parameter);
  }
  return false;
}

void HuggingFaceReader::load(const TensorSlice& slice) const {
  const auto found = parameters_.find(slice.name);
  check_invariant(found != parameters_.end(), "parameter {} has a name on disk", slice.name);
  check_invariant(slice.shape == found->second.names->shape, "parameter {} has shape {}, on disk {}", slice.name,
                  text_of(slice.shape), text_of(found->second.names->shape));
  check_invariant(slice.data.scalar_type() == at::kFloat, "parameter {} is loaded into fp32", slice.name);
  for (const auto& overlap : found->second.parts.overlaps(slice.begin, slice.data.numel())) {
    const std::string& part = overlap.part->name;
    const at::Tensor data = slice.data.narrow(0, overlap.begin_in_range, overlap.count);
    const auto quantized = quantized_.find(part);
    if (quantized != quantized_.end())
      quantized->second->read(overlap.begin_in_part, data);
    else
      files_.find(part).file->read(part, overlap.begin_in_part, data);
  }
}

}  // namespace conclave
