// The subcommands of `conclave bench`, one file each.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <string>

#include "benchmarks/step_profile.h"

namespace conclave {

void add_bench_step(CLI::App& bench, int& exit_code);
void add_bench_layer(CLI::App& bench, int& exit_code);
void add_bench_products(CLI::App& bench, int& exit_code);
void add_bench_collectives(CLI::App& bench, int& exit_code);
void add_bench_machine(CLI::App& bench, int& exit_code);

// A benchmark of what a job's step consists of, each part alone and repeated. `measure` is called on all ranks, and
// rank 0 prints.
void add_bench_of_parts(CLI::App& bench, int& exit_code, const std::string& name, const std::string& help,
                        const std::string& footer,
                        const std::function<void(ParallelJob& job, int64_t repeats, bool json)>& measure);

// A benchmark of a job's training steps; `measure` as above. Returns the subcommand, for more options of its own.
CLI::App* add_bench_of_steps(CLI::App& bench, int& exit_code, const std::string& name, const std::string& help,
                             const std::string& footer,
                             const std::function<void(ParallelJob& job, ProfileRequest request, bool json)>& measure);

}  // namespace conclave
