#include "config/validation_section.h"

#include "config/fields.h"
#include "config/key_rules.h"

namespace conclave {

void describe(ValidationConfig& validation, Fields& to) {
  to.section("validation", "loss on the held-back data, and texts of the model");
  to.field("validation.every", validation.every, count_from(0), "steps between validations; 0: none");
  to.field("validation.samples", validation.samples, count_from(0),
           "samples of one validation: the first of the set, the same on every layout; 0: the whole set");
  to.field("validation.prompts", validation.prompts, Anything{},
           "texts that the model goes on from at each validation, for the log, the metrics and the report; null: none");
  to.field("validation.prompt_tokens", validation.prompt_tokens, size_of_at_least(1), "tokens that each goes on");
  to.field("validation.temperature", validation.temperature, at_least(0),
           "of drawing these tokens; 0: the most likely ones are taken");
  to.field("validation.tokenizer", validation.tokenizer, Anything{},
           "the folder of the tokenizer for prompts; null: that of model.init_from or model.upcycle_from");
}

void check(const ValidationConfig& validation, KeyRules& rules) {
  rules.refuse_if(validation.prompts && validation.every == 0, {"validation.prompts", "validation.every"},
                  "validation.prompts is given, but validation.every is 0, and texts are written at validations.",
                  "Set validation.every, or leave validation.prompts out.");
}

}  // namespace conclave
