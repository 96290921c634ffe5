#include "apps/command_line.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "config/mistake.h"
#include "config/nearest_name.h"

namespace conclave {
namespace {

std::vector<const CLI::App*> commands_of(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

std::vector<std::string> names_of_commands(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : commands_of(app)) names.push_back(command->get_name());
  return names;
}

std::vector<std::string> names_of_options(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back(name);
  return names;
}

// "Did you mean --ranks?", or where the names are listed.
std::string remedy(const std::string& word, const std::vector<std::string>& names, const std::string& before,
                   const std::string& listed) {
  const auto meant = nearest_name(word, names);
  return meant ? fmt::format("Did you mean {}{}?", before, *meant) : listed;
}

void check_option(const CLI::App& app, const std::string& path, const std::string& word) {
  const std::string name = word.substr(2, word.find('=') - 2);
  const std::vector<std::string> names = names_of_options(app);
  if (std::find(names.begin(), names.end(), name) != names.end()) return;
  throw UserError(mistake(fmt::format("unknown option --{} of {}.", name, path),
                          remedy(name, names, "--", fmt::format("{} --help lists the options.", path)), ""));
}

bool is_option(const std::string& word) {
  return word.size() > 2 && word.starts_with("--");
}

CLI::Validator number_that(bool (*fits)(double), const std::string& rule) {
  const auto check = [fits, rule](const std::string& text) {
    double value = 0;
    return CLI::detail::lexical_cast(text, value) && fits(value) ? ""
                                                                 : fmt::format("{} is not a number {}", text, rule);
  };
  return CLI::Validator(check, "");
}

}  // namespace

void check_words(const CLI::App& app, const std::vector<std::string>& words) {
  const CLI::App* command = &app;
  std::string path = app.get_name();
  bool asks_for_help = false;
  size_t at = 0;
  for (; at < words.size() && !commands_of(*command).empty(); ++at) {
    const std::string& word = words[at];
    if (word.starts_with('-')) {
      if (is_option(word)) check_option(*command, path, word);
      asks_for_help = true;  // these commands have no options but --help and --version
      continue;
    }
    const std::vector<const CLI::App*> commands = commands_of(*command);
    const auto named = [&](const CLI::App* one) { return one->get_name() == word; };
    const auto found = std::find_if(commands.begin(), commands.end(), named);
    const std::vector<std::string> names = names_of_commands(*command);
    if (found == commands.end())
      throw UserError(
          mistake(fmt::format("unknown command {} {}.", path, word),
                  remedy(word, names, path + " ", fmt::format("The commands are {}.", fmt::join(names, ", "))), ""));
    command = *found;
    path += " " + word;
  }
  if (!commands_of(*command).empty() && !asks_for_help)
    throw UserError(mistake(fmt::format("{} needs a command.", path),
                            fmt::format("The commands are {}. {} --help explains them.",
                                        fmt::join(names_of_commands(*command), ", "), path),
                            ""));
  if (command->get_prefix_command()) return;  // what follows is another program's
  for (; at < words.size() && words[at] != "--"; ++at)
    if (is_option(words[at])) check_option(*command, path, words[at]);
}

CLI::Validator above_zero() {
  return number_that([](double value) { return value > 0; }, "above 0");
}

CLI::Validator zero_or_more() {
  return number_that([](double value) { return value >= 0; }, "of 0 or more");
}

void refuse_command_line(const CLI::App& app, const CLI::ParseError& error) {
  const CLI::App* command = &app;
  std::string path = app.get_name();
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().front();
    path += " " + command->get_name();
  }
  throw UserError(mistake(fmt::format("{}.", error.what()), fmt::format("{} --help explains the command.", path), ""));
}

}  // namespace conclave
