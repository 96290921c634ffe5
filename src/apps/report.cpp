// conclave report: a page of a run's metrics, or one that compares runs. What is in a run's folder is read and drawn by
// `python -m conclave.report`.
#include <fmt/core.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "apps/command.h"
#include "apps/python_pipe.h"
#include "base/error.h"
#include "base/shown_path.h"

namespace conclave {

void add_report(CLI::App& app, int& exit_code) {
  struct Options {
    std::vector<std::filesystem::path> runs;
    std::filesystem::path output;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "report",
      "make an HTML page of a run: losses, rates, memory, load of the experts, job and versions. Of several runs: one "
      "that compares them, with the settings that differ");
  command->add_option("runs", options->runs, "folders of runs (run.output_dir), also while they run")->required();
  command->add_option("--output", options->output,
                      "the page to write (default: report.html in the run's folder; of several: in this folder)");
  command->footer("The page holds everything it shows: it can be moved, mailed and opened without a network.");
  command->callback([options, &exit_code] {
    for (const std::filesystem::path& run : options->runs)
      if (!std::filesystem::is_directory(run)) user_error("there is no folder {}.", shown_path(run));
    const std::filesystem::path beside = options->runs.size() == 1 ? options->runs.front() : "";
    const std::filesystem::path page = options->output.empty() ? beside / "report.html" : options->output;
    const std::filesystem::path folder = page.has_parent_path() ? page.parent_path() : ".";
    if (!std::filesystem::is_directory(folder) || std::filesystem::is_directory(page))
      user_error("--output is {}, but it must be a file in a folder that is there.", page.string());
    std::vector<std::string> words = {"--output", page.string(), "--"};
    for (const std::filesystem::path& run : options->runs) words.push_back(run.string());
    PythonPipe python("conclave.report", words);
    exit_code = python.exit_code();
    if (exit_code == exit_success) fmt::print("wrote {}\n", page.string());
  });
}

}  // namespace conclave
