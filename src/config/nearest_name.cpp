#include "config/nearest_name.h"

#include <algorithm>
#include <limits>

namespace conclave {
namespace {

std::string_view section_of(std::string_view key) {
  return key.substr(0, key.find('.'));
}
std::string_view name_in_section(std::string_view key) {
  return key.substr(key.find('.') + 1);
}

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::vector<int>> distance(a.size() + 1, std::vector<int>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        distance[i][j] = static_cast<int>(i + j);
        continue;
      }
      const int replaced = distance[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      distance[i][j] = std::min({replaced, distance[i - 1][j] + 1, distance[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
        distance[i][j] = std::min(distance[i][j], distance[i - 2][j - 2] + 1);
    }
  }
  return distance[a.size()][b.size()];
}

std::optional<std::string> nearest_name(std::string_view word, const std::vector<std::string>& names) {
  const int allowed = std::max(1, static_cast<int>(word.size()) / 3);
  std::optional<std::string> nearest;
  int least = std::numeric_limits<int>::max();
  for (const std::string& name : names) {
    const int distance = edit_distance(word, name);
    if (distance < least && distance <= allowed) {
      least = distance;
      nearest = name;
    }
  }
  return nearest;
}

std::optional<std::string> nearest_key(std::string_view key, const std::vector<std::string>& keys) {
  std::vector<std::string> of_section;
  for (const std::string& candidate : keys) {
    if (section_of(candidate) == section_of(key)) of_section.emplace_back(name_in_section(candidate));
  }
  if (const auto name = nearest_name(name_in_section(key), of_section))
    return std::string(section_of(key)) + "." + *name;
  for (const std::string& candidate : keys) {
    if (name_in_section(candidate) == name_in_section(key)) return candidate;
  }
  return nearest_name(key, keys);
}

}  // namespace conclave
