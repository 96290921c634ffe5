// conclave report: a page of a run's metrics. What is in a run's folder is read and drawn by `python -m
// conclave.report`.
#include <fmt/core.h>

#include <filesystem>
#include <memory>

#include "apps/command.h"
#include "apps/python_pipe.h"
#include "base/error.h"
#include "base/shown_path.h"

namespace conclave {

void add_report(CLI::App& app, int& exit_code) {
  struct Options {
    std::filesystem::path run;
    std::filesystem::path output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "report", "make an HTML page of a run: losses, rates, memory, load of the experts, job and versions");
  command->add_option("run", options->run, "the folder of a run (run.output_dir), also while it runs")->required();
  command->add_option("--output", options->output, "the page to write (default: report.html in the run's folder)");
  command->footer("The page holds everything it shows: it can be moved, mailed and opened without a network.");
  command->callback([options, &exit_code] {
    if (!std::filesystem::is_directory(options->run)) user_error("there is no folder {}.", shown_path(options->run));
    const std::filesystem::path page = options->output.empty() ? options->run / "report.html" : options->output;
    const std::filesystem::path folder = page.has_parent_path() ? page.parent_path() : ".";
    if (!std::filesystem::is_directory(folder) || std::filesystem::is_directory(page))
      user_error("--output is {}, but it must be a file in a folder that is there.", page.string());
    PythonPipe python("conclave.report", {options->run.string(), "--output", page.string()});
    exit_code = python.exit_code();
    if (exit_code == exit_success) fmt::print("wrote {}\n", page.string());
  });
}

}  // namespace conclave
