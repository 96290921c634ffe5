// conclave init: a commented job file and a model's config to begin with, after three questions or by options.
#include "apps/init.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <system_error>

#include "apps/command_line.h"
#include "apps/quantity_text.h"
#include "apps/starter_job.h"
#include "base/error.h"
#include "base/printable.h"
#include "base/shown_path.h"
#include "config/nearest_name.h"
#include "families/family.h"
#include "metrics/terminal.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> model_types() {
  std::vector<std::string> names;
  for (const Family* family : families()) names.emplace_back(family->model_type);
  return names;
}

// Of a value that must be one of some names.
void check_name(const std::string& option, const std::string& value, const std::vector<std::string>& names) {
  if (std::find(names.begin(), names.end(), value) != names.end()) return;
  const auto meant = nearest_name(value, names);
  user_error("{} is {}, but it must be one of {}.{}", option, value, fmt::join(names, ", "),
             meant ? fmt::format("\n       Did you mean {}?", *meant) : "");
}

// Asks until `check` lets the answer pass; an empty one means `by_default`.
std::string ask(const std::string& question, const std::string& by_default,
                const std::function<void(const std::string&)>& check) {
  for (std::string answer;;) {
    fmt::print("{}{}: ", question, by_default.empty() ? "" : fmt::format(" [{}]", by_default));
    std::fflush(stdout);
    if (!std::getline(std::cin, answer))
      user_error("the questions were not answered. Give --family, --size and --data instead.");
    if (answer.empty()) answer = by_default;
    try {
      check(answer);
      return answer;
    } catch (const UserError& mistake) {
      fmt::print("  {}\n", printable(mistake.what(), LineFeeds::kept));
    }
  }
}

std::string list_of_sizes() {
  std::string lines;
  for (const StarterSize& size : starter_sizes()) lines += fmt::format("\n  {:<7} {}", size.name, size.meant_for);
  return lines;
}

bool can_ask() {
  return is_terminal(stdin) && is_terminal(stdout);
}

// The three questions, of those that no option answers.
void complete(StarterRequest& request) {
  const auto check_family = [](const std::string& value) { check_name("--family", value, model_types()); };
  const auto check_size = [](const std::string& value) { check_name("--size", value, names_of_sizes()); };
  const auto check_data = [](const std::string& value) { find_starter_data(value); };
  std::vector<std::string> missing;
  if (request.family.empty()) missing.emplace_back("--family");
  if (request.size.empty()) missing.emplace_back("--size");
  if (request.data.empty()) missing.emplace_back("--data");
  if (!missing.empty() && !can_ask())
    user_error("{} {} missing, and there is no terminal to ask on.\n       {} --help explains the options.",
               fmt::join(missing, ", "), missing.size() == 1 ? "is" : "are", "conclave init");
  if (!request.family.empty()) check_family(request.family);
  if (!request.size.empty()) check_size(request.size);
  if (request.family.empty())
    request.family = ask(fmt::format("Which family of models?\n  {}\nfamily", fmt::join(model_types(), ", ")),
                         "mixtral", check_family);
  if (request.size.empty()) request.size = ask(fmt::format("How large?{}\nsize", list_of_sizes()), "tiny", check_size);
  if (request.data.empty())
    request.data =
        ask("Which token files? The prefix that `conclave data build` was given as --output.\ndata", "", check_data);
}

void refuse_if_there(const fs::path& path) {
  std::error_code unknown;
  if (fs::symlink_status(path, unknown).type() != fs::file_type::not_found)
    user_error("{} is there already, and init replaces nothing.\n       Give another --output, or remove it.",
               shown_path(path));
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  if (!folder.empty()) fs::create_directories(folder, error);
  if (error) user_error("the folder {} cannot be made: {}.", shown_path(folder), error.message());
}

// A file that is new; one that has appeared meanwhile stays as it is.
void write_new(const fs::path& path, const std::string& text) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file < 0) user_error("{} cannot be written: {}.", shown_path(path), std::strerror(errno));
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::write(file, text.data() + done, text.size() - done);
    if (count < 0 && errno != EINTR) break;
    if (count > 0) done += static_cast<size_t>(count);
  }
  const int reason = errno;
  ::close(file);
  if (done == text.size()) return;
  fs::remove(path);
  throw std::runtime_error(fmt::format("{} cannot be written: {}", path.string(), std::strerror(reason)));
}

void write_files(const StarterRequest& request, const StarterJob& starter) {
  const fs::path config = starter.model_folder / "config.json";
  refuse_if_there(request.output);
  refuse_if_there(starter.model_folder);
  make_folder(request.output.parent_path());
  make_folder(starter.model_folder);
  try {
    write_new(config, hugging_face_config_json(starter.model, "float32"));
    write_new(request.output, starter.text);
  } catch (...) {
    std::error_code unknown;
    fs::remove(config, unknown);
    fs::remove(starter.model_folder, unknown);
    throw;
  }
}

std::string summary_of(const StarterRequest& request, const StarterJob& starter) {
  const Plan& plan = starter.plan;
  const double seconds = plan.busiest.time.step_seconds * static_cast<double>(plan.job.job.run.steps);
  std::string text = fmt::format(
      "wrote {} and {}\n\n"
      "{:.1f} million parameters, {:.1f} million of them used by each token; {:.2g} passes over the data\n"
      "{} of {} a rank at the peak; a step takes about {}, the run {} (an estimate for {})\n",
      request.output.string(), (starter.model_folder / "config.json").string(),
      static_cast<double>(plan.parameters) / 1e6, static_cast<double>(plan.parameters_per_token) / 1e6, starter.epochs,
      size_text(plan.peak_bytes()), size_text(plan.device.usable_bytes()), seconds_text(plan.busiest.time.step_seconds),
      duration(seconds), request.device);
  for (const std::string& setting : starter.adjusted)
    text += fmt::format("chosen so that it fits in memory: {}\n", setting);
  return text + fmt::format(
                    "\nNext:\n  conclave validate {0} --world {1}\n  conclave train {0} --ranks {1}\n  conclave report "
                    "{2}\n",
                    request.output.string(), request.ranks, plan.job.job.run.output_dir.string());
}

std::string default_device() {
  std::error_code unknown;
  return fs::exists("/dev/nvidia0", unknown) ? "h100-80" : "cpu";
}

}  // namespace

void add_init(CLI::App& app) {
  auto request = std::make_shared<StarterRequest>();
  request->ranks = 2;
  request->device = default_device();
  request->output = "job.yaml";
  CLI::App* command = app.add_subcommand("init", "write a commented job file and a model's config to begin with");
  command->add_option("--family", request->family, fmt::format("{}", fmt::join(model_types(), ", ")));
  command->add_option("--size", request->size, fmt::format("{}", fmt::join(names_of_sizes(), ", ")));
  command->add_option("--data", request->data,
                      "the prefix of token files; PREFIX-train and PREFIX-validation are found too");
  command->add_option("--ranks", request->ranks, "the number of ranks the job is for")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command
      ->add_option("--device", request->device,
                   fmt::format("what a rank computes on: {}, or a YAML file", fmt::join(built_in_devices(), ", ")))
      ->capture_default_str();
  command->add_option("--vocab-size", request->vocab_size, "the tokenizer's size (default: what the data need)")
      ->check(above_zero());
  command->add_option("--output", request->output, "the job file; the model's config goes into a folder beside it")
      ->capture_default_str();
  command->footer(fmt::format(
      "Options that are left out are asked for. Sizes:{}\n\nThe data are read, the layout is chosen and the "
      "memory is counted before anything is written. Nothing that is there is replaced.",
      list_of_sizes()));
  command->callback([request] {
    complete(*request);
    if (request->output.filename().empty() || request->output.stem().empty())
      user_error("--output is {}, but it must be the name of a file.", request->output.string());
    refuse_if_there(request->output);
    const StarterJob starter = make_starter_job(*request);
    write_files(*request, starter);
    fmt::print("{}", summary_of(*request, starter));
  });
}

}  // namespace conclave
