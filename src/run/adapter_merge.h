// An adapter folded into the model that it lies beside: W + scale * B A, in fp32, block by block.
#pragma once

#include "checkpoint/checkpoint_blocks.h"
#include "checkpoint/hugging_face_export.h"
#include "run/stored_adapter.h"

namespace conclave {

// Fills a slice of a parameter of the model, in fp32.
using ReadParameter = std::function<void(const TensorSlice& slice)>;

// Writes the Hugging Face folder `to`. Memory: the adapter, and blocks of rows.
void merge_adapter(StoredAdapter& adapter, const ReadParameter& read, const std::filesystem::path& to,
                   const HuggingFaceExportOptions& options, const BytesDone& done);

}  // namespace conclave
