// The subcommands of `conclave bench`, one file each.
#pragma once

#include <CLI/CLI.hpp>

namespace conclave {

void add_bench_step(CLI::App& bench, int& exit_code);
void add_bench_products(CLI::App& bench, int& exit_code);
void add_bench_collectives(CLI::App& bench, int& exit_code);

}  // namespace conclave
