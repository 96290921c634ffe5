// What a user types, before CLI11 sees it: unknown commands and options are refused with the name that was probably
// meant, also beside --help, which CLI11 would answer first.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace conclave {

// UserError: a word is no command or option of `app`, or a command is missing. `words`: the command line without the
// program.
void check_words(const CLI::App& app, const std::vector<std::string>& words);

// Checks of a number's option, with their reason in words (CLI11's own print the largest double).
CLI::Validator above_zero();
CLI::Validator zero_or_more();

// What CLI11 refused, as a mistake of the chosen command.
[[noreturn]] void refuse_command_line(const CLI::App& app, const CLI::ParseError& error);

}  // namespace conclave
