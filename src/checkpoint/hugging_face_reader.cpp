#include "checkpoint/hugging_face_reader.h"

#include <set>

#include "base/error.h"

namespace conclave {
namespace {

bool is_harmless(std::string_view tensor) {
  return tensor.ends_with(".rotary_emb.inv_freq") || tensor == "lm_head.weight";
}

void check_part(const DiskTensor& part, const DiskNames& names, const HuggingFaceFiles& files) {
  const auto [file, tensor] = files.find(part.name);
  if (tensor == nullptr) {
    user_error("{} has no tensor \"{}\", which parameter {} needs. Is this the model that config.json describes?",
               files.folder().string(), part.name, names.parameter);
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
      if (files.find(part.name).tensor != nullptr) return true;
    }
    return false;
  };
  if (!any_is_there(names.parts) && any_is_there(names.alternative)) return names.alternative;
  return names.parts;
}

HuggingFaceReader::HuggingFaceReader(const std::filesystem::path& folder, std::span<const DiskNames> names)
    : files_(folder) {
  std::set<std::string_view> claimed;
  for (const DiskNames& parameter : names) {
    const std::span<const DiskTensor> form = form_of(parameter, files_);
    for (const DiskTensor& part : form) {
      check_part(part, parameter, files_);
      claimed.insert(part.name);
    }
    parameters_.emplace(parameter.parameter, Parameter{&parameter, DiskParts(parameter, form)});
  }
  for (const auto& [file, tensor] : files_.all()) {
    if (claimed.contains(tensor->name) || is_harmless(tensor->name)) continue;
    user_error(
        "{} holds tensor \"{}\" of shape {}, which this model has no parameter for. Is this the model that config.json "
        "describes?",
        file->file().path().string(), tensor->name, text_of(tensor->shape));
  }
}

void HuggingFaceReader::load(const TensorSlice& slice) const {
  const auto found = parameters_.find(slice.name);
  check_invariant(found != parameters_.end(), "parameter {} has a name on disk", slice.name);
  check_invariant(slice.shape == found->second.names->shape, "parameter {} has shape {}, on disk {}", slice.name,
                  text_of(slice.shape), text_of(found->second.names->shape));
  check_invariant(slice.data.scalar_type() == at::kFloat, "parameter {} is loaded into fp32", slice.name);
  for (const auto& overlap : found->second.parts.overlaps(slice.begin, slice.data.numel())) {
    const std::string& part = overlap.part->name;
    files_.find(part).file->read(part, overlap.begin_in_part,
                                 slice.data.narrow(0, overlap.begin_in_range, overlap.count));
  }
}

}  // namespace conclave
