#include "apps/help_formatter.h"

#include <fmt/core.h>

#include <sstream>
#include <string_view>

namespace conclave {
namespace {

constexpr size_t terminal_columns = 100;

// Where the lines that continue `line` begin: below its last column, or as it is indented.
size_t indent_of_rest(std::string_view line) {
  const size_t first = line.find_first_not_of(' ');
  if (first == std::string_view::npos) return 0;
  size_t indent = first;
  for (size_t gap = line.find("  ", first); gap != std::string_view::npos; gap = line.find("  ", indent)) {
    indent = line.find_first_not_of(' ', gap);
    if (indent == std::string_view::npos || indent > terminal_columns / 2) return first;
  }
  return indent;
}

std::string wrapped_line(std::string line, size_t columns) {
  std::string rest_begins(indent_of_rest(line), ' ');
  if (line.substr(rest_begins.size(), 2) == "# ") rest_begins += "# ";  // a comment in YAML goes on as one
  std::string text;
  while (line.size() > columns) {
    size_t blank = line.rfind(' ', columns);
    if (blank == std::string::npos || blank < rest_begins.size() + 1) blank = line.find(' ', columns);
    if (blank == std::string::npos) break;
    text += line.substr(0, blank) + "\n";
    line = rest_begins + line.substr(line.find_first_not_of(' ', blank));
  }
  return text + line;
}

// "INT:INT in [1 - 1024]" is "NUMBER (1 to 1024)"; "TEXT:{fp32,bf16}" is "{fp32,bf16}".
std::string type_in_words(const std::string& type) {
  const size_t colon = type.find(':');
  const std::string name = type.substr(0, colon);
  const std::string check = colon == std::string::npos ? "" : type.substr(colon + 1);
  if (check.starts_with('{')) return check;
  const std::string word = name == "INT" || name == "UINT" || name == "FLOAT" ? "NUMBER" : name;
  const size_t range = check.find(" in ["), dash = check.find(" - ");
  if (range == std::string::npos || dash == std::string::npos) return word;
  return fmt::format("{} ({} to {})", word, check.substr(range + 5, dash - range - 5),
                     check.substr(dash + 3, check.find(']') - dash - 3));
}

}  // namespace

std::string wrapped(const std::string& text, size_t columns) {
  std::istringstream lines(text);
  std::string all;
  for (std::string line; std::getline(lines, line);) all += wrapped_line(line, columns) + "\n";
  return all;
}

std::string HelpFormatter::make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const {
  return wrapped(CLI::Formatter::make_help(app, std::move(name), mode), terminal_columns);
}

std::string HelpFormatter::make_option_opts(const CLI::Option* option) const {
  if (option->get_type_size() == 0) return "";
  std::string text = option->get_type_name().empty() ? "" : " " + type_in_words(option->get_type_name());
  if (!option->get_default_str().empty()) text += "=" + option->get_default_str();
  return text + (option->get_required() ? " REQUIRED" : "");
}

}  // namespace conclave
