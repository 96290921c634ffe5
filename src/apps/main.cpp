// The `conclave` program: one file per subcommand.
#include <cstdio>
#include <memory>

#include "apps/command.h"
#include "apps/command_line.h"
#include "apps/help_formatter.h"
#include "apps/init.h"
#include "base/error.h"
#include "families/family.h"

int main(int argc, char** argv) {
  using namespace conclave;
  CLI::App app{
      "Conclave trains language models over many ranks: experts divided (expert parallelism), everything else "
      "sharded (sharded and hybrid data parallelism). Families: " +
      family_names() +
      ".\n\n"
      "First steps:  conclave init                         write a job file for your data\n"
      "              conclave validate job.yaml --world 2  is the job right for two ranks?\n"
      "              conclave plan job.yaml --world 2      what does a step on them need?\n"
      "              conclave train job.yaml --ranks 2     train on two ranks of this machine\n"};
  app.name("conclave");
  app.formatter(std::make_shared<HelpFormatter>());
  app.set_version_flag("--version", CONCLAVE_VERSION);
  app.require_subcommand(1);
  app.footer(
      "conclave COMMAND --help explains a command. Exit codes: 0 done, 1 failure, 2 a mistake in the input, 3 another "
      "rank is lost, 4, 5 and 6 training was stopped after a step: by SIGTERM or SIGHUP, by SIGINT, by SIGUSR1 or "
      "run.stop_after.");

  int exit_code = exit_success;
  add_init(app);
  add_train(app, exit_code);
  add_validate(app, exit_code);
  add_plan(app, exit_code);
  add_eval(app, exit_code);
  add_trace(app, exit_code);
  add_generate(app, exit_code);
  add_chat(app, exit_code);
  add_ckpt(app, exit_code);
  add_data(app, exit_code);
  add_bench(app, exit_code);
  add_report(app, exit_code);
  try {
    check_words(app, {argv + 1, argv + argc});
    try {
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() != 0) refuse_command_line(app, error);
      return app.exit(error);  // --help and --version
    }
    return exit_code;
  } catch (const std::exception& error) {
    return report_error(error);
  }
}
