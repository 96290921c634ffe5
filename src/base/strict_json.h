// JSON from anywhere: valid UTF-8, no key twice in an object, nothing after the value, bounded depth. Every JSON that
// the program reads comes through here; only the headers of safetensors files, which are read event by event, do not,
// and they keep the same depth.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace conclave {

// Objects and arrays within each other. It is the limit of safetensors' own reader.
inline constexpr int deepest_json = 127;

// UserError naming `origin` (a file) and the reason.
nlohmann::json parse_strict_json(std::string_view text, const std::string& origin);

// What is wrong with a JSON text, without the library's own prefix.
std::string reason_of(const nlohmann::json::exception& error);

}  // namespace conclave
