// How --help looks: no line is longer than a terminal of 100 columns is wide, and values are named in words.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

namespace conclave {

class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_help(const CLI::App* app, std::string name, CLI::AppFormatMode mode) const override;
  // " NUMBER (1 to 1024) REQUIRED"
  std::string make_option_opts(const CLI::Option* option) const override;
};

// Breaks longer lines at blanks. What follows a gap of two blanks or more is a column: its lines begin below each
// other, as those of a paragraph do. A word that has no room stays whole.
std::string wrapped(const std::string& text, size_t columns);

}  // namespace conclave
