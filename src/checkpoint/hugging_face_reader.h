// Reading a model from a Hugging Face folder into the slices that a rank owns.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string_view>

#include "checkpoint/disk_parts.h"
#include "checkpoint/hugging_face_files.h"
#include "checkpoint/quantized_tensor.h"
#include "checkpoint/tensor_slice.h"

namespace conclave {

class HuggingFaceReader {
 public:
  // Opens the safetensors files of `folder`. `names` lists the whole model and outlives this; each parameter may be
  // stored as its `parts` or as its `alternative`.
  //
  // UserError, before any parameter is read, naming tensor and file: a missing tensor, another shape, a type that is
  // not a float, a tensor that no parameter claims, a parameter of one tensor that is stored under both its names with
  // different values (a head that should be tied). Ignored: `*.rotary_emb.inv_freq` (computed anew), and names that
  // begin with `left_out` unless that is empty. It depends on the files alone, so all ranks refuse alike.
  HuggingFaceReader(const std::filesystem::path& folder, std::span<const DiskNames> names,
                    const std::string& left_out = {});

  // Fills a slice (fp32) of a parameter, of any float type on disk or quantized (quantized_tensor.h). Every rank reads
  // alone, only the byte ranges that it needs, in bounded blocks.
  void load(const TensorSlice& slice) const;

 private:
  struct Parameter {
    const DiskNames* names;
    DiskParts parts;
  };
  bool is_the_same_under_another_name(const HuggingFaceFiles::Place& place, std::span<const DiskNames> names) const;

  HuggingFaceFiles files_;
  std::map<std::string_view, Parameter> parameters_;
  std::map<std::string, std::unique_ptr<QuantizedTensor>> quantized_;  // by part
};

// Which of the two forms of a parameter the files hold.
std::span<const DiskTensor> form_of(const DiskNames& names, const HuggingFaceFiles& files);

}  // namespace conclave
