#include "config/train_section.h"

#include "config/fields.h"

namespace conclave {

void describe(TrainConfig& train, Fields& to) {
  to.section("train", "what of the model is trained");
  to.field("train.freeze", train.freeze, Anything{},
           "patterns (* any characters, ? one) over names in Hugging Face files, such as model.embed_tokens.weight or "
           "*.mlp.gate.weight: these parameters stay as they are");
}

}  // namespace conclave
