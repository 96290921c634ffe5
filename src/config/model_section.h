// The section `model` of the job file. The model's shape, and its weights if there are any yet.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace conclave {

class Fields;
class KeyRules;

struct ModelSource {
  std::filesystem::path config;  // required: a Hugging Face config.json or its folder
  std::optional<std::filesystem::path>
      init_from;  // a Hugging Face checkpoint folder to start from; random initialization without it
  std::optional<std::filesystem::path> upcycle_from;  // a folder of a dense model, whose MLP each expert starts as
  double upcycle_noise = 0.0;  // added to each expert, relative to the standard deviation of the dense weights
  double upcycle_reinit_fraction = 0.0;      // of each expert's intermediate units, drawn anew
  std::optional<int64_t> resize_vocabulary;  // ids of the model, whatever the source's; null: as model.config says
  bool shrink_vocabulary = false;            // resize_vocabulary may drop the source's last ids
};

void describe(ModelSource& model, Fields& to);
void check(const ModelSource& model, KeyRules& rules);

}  // namespace conclave
