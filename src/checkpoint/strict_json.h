// JSON as our own files and Hugging Face's index files must be: valid UTF-8, no key twice in an object, nothing after
// the value, bounded depth. Included only by this folder's sources.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace conclave {

// UserError naming `origin` (a file) and the reason.
nlohmann::json parse_strict_json(std::string_view text, const std::string& origin);

}  // namespace conclave
