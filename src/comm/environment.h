// Environment variables as launchers set them. A malformed one is a UserError that names it.
#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace conclave {

// Nothing where it is not set, or empty.
std::optional<std::string> variable(const char* name);
std::optional<int> count_in(const char* name);
// The first of them that is set; null if none is.
const char* first_set(std::initializer_list<const char*> names);

// A variable without which `seen`, set by the same launcher, makes no sense.
int required_count(const char* name, const char* launcher, const char* seen);
int port_in(const char* name);

// A number that is a part of the variable `name`, whose whole text is `whole`.
int parse_count(std::string_view text, const char* name, std::string_view whole);

}  // namespace conclave
