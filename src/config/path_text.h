// Paths as they are written in a job: `~` is the home folder, `~name` that of another user, `$NAME` and `${NAME}` are
// environment variables, and `$$` is a dollar sign.
#pragma once

#include <string>

namespace conclave {

// Replaces all of these in `text`. Returns why that is not possible, as a refusal (config/field_values.h), or nothing.
std::string expand_path(std::string& text);

// The text that expand_path() turns into `path`.
std::string written_path(const std::string& path);

}  // namespace conclave
