// The section `validation` of the job file. Loss on the held-back data.
#pragma once

#include <cstdint>

namespace conclave {

class Fields;

struct ValidationConfig {
  int64_t every = 0;      // steps between validations; 0: none
  int64_t samples = 128;  // of the set, from its beginning, whatever the layout; 0: the whole set
};

void describe(ValidationConfig& validation, Fields& to);

}  // namespace conclave
