// The `conclave` program: one file per subcommand.
#include <cstdio>

#include "apps/command.h"
#include "base/error.h"

int main(int argc, char** argv) {
  using namespace conclave;
  CLI::App app{
      "Conclave pre-trains Mixtral-class mixture-of-experts models over many ranks: experts divided (expert "
      "parallelism), everything else "
      "sharded (sharded and hybrid data parallelism).\n\n"
      "First steps:  conclave validate job.yaml        is the job right?\n"
      "              conclave plan job.yaml            what does a step need?\n"
      "              conclave train job.yaml --ranks 2  train on two ranks of this machine\n"};
  app.name("conclave");
  app.set_version_flag("--version", CONCLAVE_VERSION);
  app.require_subcommand(1);
  app.footer(
      "conclave COMMAND --help explains a command. Exit codes: 0 done, 1 failure, 2 a mistake in the input, 3 another "
      "rank is lost, 4, 5 and 6 training was stopped by SIGTERM, SIGINT or SIGUSR1 after a step.");

  int exit_code = exit_success;
  add_train(app, exit_code);
  add_validate(app, exit_code);
  add_plan(app, exit_code);
  add_eval(app, exit_code);
  add_trace(app, exit_code);
  add_ckpt(app, exit_code);
  add_data(app, exit_code);
  add_bench(app, exit_code);
  add_report(app, exit_code);
  try {
    app.parse(argc, argv);
    return exit_code;
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? exit_success : exit_user_error;
  } catch (const std::exception& error) {
    return report_error(error);
  }
}
