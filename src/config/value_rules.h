// What a key's value must obey by itself.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace conclave {

// Any value of its type.
struct Anything {};

// Text that is not empty.
struct NotEmpty {};

// One of some words, or a path.
struct WordOrPath {};

// A path without a default, needed by `who`. An empty path is one that was not given.
struct RequiredPath {
  const char* who;
  bool always;  // needed by whatever reads a job file, not by some commands only
};

// A number from `least` to `most`.
struct NumberRange {
  double least;
  double most = std::numeric_limits<double>::infinity();
  bool without_least = false;
  bool without_most = false;
};
inline NumberRange at_least(double least) {
  return {least};
}
inline NumberRange more_than(double least) {
  return {.least = least, .without_least = true};
}
// Products of two sizes cannot overflow.
constexpr double largest_size = std::numeric_limits<int32_t>::max();
inline NumberRange size_of_at_least(double least) {
  return {least, largest_size};
}
// Of steps, and of what is kept or done once in some steps: a billion is more than any run has.
inline NumberRange count_from(double least) {
  return {least, 1e9};
}
constexpr double largest_world = 1 << 20;
constexpr double most_layers = 10'000;
inline NumberRange from_to_below(double least, double most) {
  return {.least = least, .most = most, .without_most = true};
}

// One word of several.
template <class Enum>
struct OneOf {
  std::vector<std::pair<std::string, Enum>> words;
};

// A key whose other values are known, but not supported in this version, and why.
struct Only {
  const char* value;  // as printed
  const char* reason;
};

}  // namespace conclave
