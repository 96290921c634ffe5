// The section `train` of the job file. What of the model is trained.
#pragma once

#include "config/name_list.h"

namespace conclave {

class Fields;

struct TrainConfig {
  NameList freeze;  // patterns over the names on disk of what stays as it is
};

void describe(TrainConfig& train, Fields& to);

}  // namespace conclave
