// A job and the model that its model.config describes, checked against each other and the world.
#pragma once

#include "mesh/checked_job.h"

namespace conclave {

// Reads the model's config. Throws UserError. Keys of it that nobody knows are among the warnings.
CheckedJob check_job_and_model(Job job, int world_size);

}  // namespace conclave
