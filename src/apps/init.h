// conclave init, which writes a job to begin with.
#pragma once

#include <CLI/CLI.hpp>

namespace conclave {

void add_init(CLI::App& app);

}  // namespace conclave
