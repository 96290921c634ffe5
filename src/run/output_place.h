// Whether a run can write its output folder, found out before it computes anything.
#pragma once

#include "config/job.h"

namespace conclave {

// UserError, naming run.output_dir and what is in its way: a file, a link to nothing, a name too long, a folder that
// takes no files, or something else where the run's own files and folders go. Leaves nothing behind.
void check_output_place(const Job& job);

}  // namespace conclave
