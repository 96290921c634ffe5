#include "config/validation_section.h"

#include "config/fields.h"

namespace conclave {

void describe(ValidationConfig& validation, Fields& to) {
  to.section("validation", "loss on the held-back data");
  to.field("validation.every", validation.every, count_from(0), "steps between validations; 0: none");
  to.field("validation.samples", validation.samples, count_from(0),
           "samples of one validation: the first of the set, the same on every layout; 0: the whole set");
}

}  // namespace conclave
