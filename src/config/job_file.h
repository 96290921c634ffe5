// The job file: YAML (hence also JSON) to a Job and back. Strict: whatever is not understood is refused, all mistakes
// at once.
//
// Relative paths are kept as they are written, and are relative to the folder the program is started in.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "config/job.h"

namespace conclave {

// Reads and validates a job file. `overrides` are of the form section.key=value (the value in YAML), and win over the
// file; of two for the same key the last one wins. Refuses with one UserError that holds every mistake found: unknown
// or repeated keys, wrong types, values out of range, missing required keys (all but `data.train`, see `require`),
// values that do not fit each other.
Job read_job(const std::filesystem::path& file, const std::vector<std::string>& overrides = {});

// The defaults and what `overrides` change in them, for commands without a job file. Required keys may be missing.
Job job_from_overrides(const std::vector<std::string>& overrides);

// The resolved job: every key with its value and meaning, as YAML that reads back to the same job, numbers to the last
// bit.
std::string print_job(Job job);

// Every section and key: type, range or choices, default, meaning.
std::string job_help();

}  // namespace conclave
