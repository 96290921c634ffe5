// Reading a model from a Hugging Face folder into the slices that a rank owns.
#pragma once

#include <filesystem>
#include <span>

#include "checkpoint/tensor_slice.h"

namespace conclave {

// Fills `slices` (fp32) from the safetensors files of `folder`, of any float type on disk. Every rank reads alone, only
// the byte ranges that it needs, in bounded blocks. `names` lists the whole model; each parameter may be stored as its
// `parts` or as its `alternative`.
//
// UserError, before any data is read, naming tensor and file: a missing tensor, another shape, a type that is not a
// float, a tensor that no parameter claims. Ignored as harmless: `*.rotary_emb.inv_freq` (computed anew) and an
// `lm_head.weight` that no parameter claims (tied embeddings). The result depends on the files alone, so all ranks
// refuse alike.
void load_hugging_face(const std::filesystem::path& folder, std::span<const DiskNames> names,
                       std::span<const TensorSlice> slices);

}  // namespace conclave
