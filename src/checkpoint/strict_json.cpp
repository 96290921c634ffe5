#include "checkpoint/strict_json.h"

#include <set>
#include <vector>

#include "base/error.h"

namespace conclave {
namespace {

constexpr int deepest = 32;

}  // namespace

nlohmann::json parse_strict_json(std::string_view text, const std::string& origin) {
  // The library would take a zero byte for the end of the text and ignore what follows.
  if (text.find('\0') != std::string_view::npos) user_error("{} is not valid JSON: it contains a zero byte.", origin);

  std::vector<std::set<std::string>> keys_of_open_objects;
  const auto refuse_duplicates = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (depth > deepest) user_error("{} is nested deeper than {} levels.", origin, deepest);
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
    return nlohmann::json::parse(text, refuse_duplicates);
  } catch (const nlohmann::json::exception& error) {
    user_error("{} is not valid JSON: {}", origin, error.what());
  }
}

}  // namespace conclave
