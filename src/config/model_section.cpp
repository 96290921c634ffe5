#include "config/model_section.h"

#include <fmt/format.h>

#include "config/fields.h"
#include "config/key_rules.h"

namespace conclave {

void describe(ModelSource& model, Fields& to) {
  to.section("model", "the model's shape, and its weights if there are any yet");
  to.field("model.config", model.config, RequiredPath{"every job", true}, "a Hugging Face config.json, or its folder");
  to.field("model.init_from", model.init_from, Anything{},
           "a Hugging Face checkpoint folder to start from; null: random weights");
  to.field("model.upcycle_from", model.upcycle_from, Anything{},
           "a Hugging Face folder of a dense model to start from: every expert begins as its MLP");
  to.field("model.upcycle_noise", model.upcycle_noise, at_least(0),
           "standard deviation of the noise added to each expert, relative to that of the dense weights");
  to.field("model.upcycle_reinit_fraction", model.upcycle_reinit_fraction, NumberRange{0, 1},
           "fraction of each expert's intermediate units that is drawn anew (drop-upcycling)");

  to.field("model.resize_vocabulary", model.resize_vocabulary, size_of_at_least(1),
           "the number of token ids, when init_from or upcycle_from has another: new rows of embedding and head are "
           "drawn around the mean of the old; null: the vocab_size of config");
  to.field("model.shrink_vocabulary", model.shrink_vocabulary, Anything{},
           "true: resize_vocabulary may be smaller than the source's vocabulary, whose last ids are dropped");
}

void check(const ModelSource& model, KeyRules& rules) {
  rules.refuse_if(model.init_from && model.upcycle_from, {"model.upcycle_from", "model.init_from"},
                  fmt::format("model.init_from is {} and model.upcycle_from is {}, but a run starts from one of them.",
                              model.init_from.value_or("").string(), model.upcycle_from.value_or("").string()),
                  "Give init_from a folder of the same model, or upcycle_from one of a dense model.");
  const auto refuse_without_dense_model = [&](const char* key, double value) {
    rules.refuse_if(
        value != 0 && !model.upcycle_from, {key, "model.upcycle_from"},
        fmt::format("{} is {}, but there is no model.upcycle_from, and without it nothing uses it.", key, value),
        fmt::format("Give model.upcycle_from, or set {} to 0.", key));
  };
  refuse_without_dense_model("model.upcycle_noise", model.upcycle_noise);
  refuse_without_dense_model("model.upcycle_reinit_fraction", model.upcycle_reinit_fraction);
  rules.refuse_if(
      model.resize_vocabulary && !model.init_from && !model.upcycle_from,
      {"model.resize_vocabulary", "model.init_from", "model.upcycle_from"},
      fmt::format("model.resize_vocabulary is {}, but there is neither model.init_from nor model.upcycle_from.",
                  model.resize_vocabulary.value_or(0)),
      "Set vocab_size in model.config, or give the folder whose vocabulary is to be resized.");
  rules.refuse_if(
      model.shrink_vocabulary && !model.resize_vocabulary, {"model.shrink_vocabulary", "model.resize_vocabulary"},
      "model.shrink_vocabulary is true, but there is no model.resize_vocabulary, and without it nothing uses it.",
      "Give model.resize_vocabulary, or set model.shrink_vocabulary to false.");
}

}  // namespace conclave
