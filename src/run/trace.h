// What the model computes for given tokens, written to a file: how anyone can hold Conclave against another
// implementation.
#pragma once

#include <filesystem>

#include "step/parallel_job.h"

namespace conclave {

struct TraceRequest {
  std::filesystem::path model;  // a Hugging Face checkpoint folder
  // safetensors: input_ids, labels (int64 [B,S]; labels already shifted, -100 is ignored), perhaps segment_ids (int64
  // [B,S]: neighbours of one number are of one document, and documents do not see each other)
  std::filesystem::path tokens;
  std::filesystem::path out;  // safetensors, written by rank 0
  bool gradients = false;
};

// Writes logits [B,S,V] fp32, rotary_cos and rotary_sin [S,D/2], lm_loss, aux_loss, and with `gradients` grad.<name on
// disk> of lm_loss + coefficient x aux_loss (+ z-loss). The batch is divided over the ranks as evenly as it can be; a
// rank may have none. Collective.
void trace(ParallelJob& job, const TraceRequest& request);

}  // namespace conclave
