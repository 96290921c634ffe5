#include "base/strict_json.h"

#include <set>
#include <vector>

#include "base/error.h"

namespace conclave {

nlohmann::json parse_strict_json(std::string_view text, const std::string& origin) {
  // The library would take a zero byte for the end of the text and ignore what follows.
  if (text.find('\0') != std::string_view::npos) user_error("{} is not valid JSON: it contains a zero byte.", origin);

  int depth = 0;
  std::vector<std::set<std::string>> keys_of_open_objects;
  const auto check = [&](int, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (++depth > deepest_json) user_error("{} is nested deeper than {} levels.", origin, deepest_json);
    } else if (event == Event::object_end || event == Event::array_end) {
      --depth;
    }
    if (event == Event::object_start) {
      keys_of_open_objects.emplace_back();
    } else if (event == Event::object_end) {
      keys_of_open_objects.pop_back();
    } else if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys_of_open_objects.back().insert(key).second) user_error("{} has the key \"{}\" twice.", origin, key);
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    user_error("{} is not valid JSON: {}.", origin, reason_of(error));
  }
}

std::string reason_of(const nlohmann::json::exception& error) {
  const std::string_view text = error.what();  // begins with "[json.exception....] "
  const size_t prefix = text.find("] ");
  return std::string(prefix == std::string_view::npos ? text : text.substr(prefix + 2));
}

}  // namespace conclave
