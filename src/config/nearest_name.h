// What a user probably meant by a mistyped name.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

// The least number of inserted, removed, replaced or swapped neighbouring characters that turns one word into the other
// (optimal string alignment distance: no part is edited twice).
int edit_distance(std::string_view a, std::string_view b);

// The name nearest to `word`, the first of equals, if it is near enough to be a slip: at most one edit in three
// characters, and one in any case.
std::optional<std::string> nearest_name(std::string_view word, const std::vector<std::string>& names);

// Of the keys "section.key", the one probably meant by `key`: a near one of the same section, the same key of another
// section, or any near one.
std::optional<std::string> nearest_key(std::string_view key, const std::vector<std::string>& keys);

}  // namespace conclave
