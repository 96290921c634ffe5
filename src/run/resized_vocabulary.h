// A vocabulary that becomes larger or smaller when a run starts from a model's weights (model.resize_vocabulary). New
// rows of the embedding and of the head are drawn as Transformers' resize_token_embeddings draws them (mean_resizing,
// its default): from a normal distribution with the mean of the old rows and 1e-9 times their covariance; where that
// has no full rank, which no set of at most H rows of H elements gives, new rows are the mean itself. Such a row
// changes the probabilities of the old tokens as little as a new one can (Hewitt, "Initializing New Word Embeddings for
// Pretrained Language Models", 2021).
//
// Every draw is a function of (seed, parameter, row), and every sum has one order: no layout changes a bit.
#pragma once

#include <cstdint>

#include "checkpoint/hugging_face_reader.h"
#include "checkpoint/tensor_slice.h"

namespace conclave {

// Fills a slice (fp32) of a parameter from the files of a model with a vocabulary of `rows` tokens. Of the embedding
// and the head old rows are read and new ones drawn: a rank with new rows reads the old matrix twice, in blocks; others
// read their old rows alone. Every other parameter is read as it is.
void load_slice(const HuggingFaceReader& reader, const TensorSlice& slice, int64_t rows, uint64_t seed);

}  // namespace conclave
