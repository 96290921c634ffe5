// conclave bench: what this machine and a job's steps on it reach.
#include "apps/bench.h"

#include "apps/command.h"

namespace conclave {

void add_bench(CLI::App& app, int& exit_code) {
  CLI::App* bench = app.add_subcommand("bench", "measure where time goes");
  bench->require_subcommand(1);
  add_bench_step(*bench, exit_code);
  add_bench_products(*bench, exit_code);
  add_bench_collectives(*bench, exit_code);
}

}  // namespace conclave
