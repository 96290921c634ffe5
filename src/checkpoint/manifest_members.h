// Typed access to the members of an object in a manifest: refuses missing, mistyped and unknown ones as damage.
// Included only by this folder's sources.
#pragma once

#include <charconv>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/damaged_checkpoint.h"

namespace conclave {

class Members {
  using json = nlohmann::json;

 public:
  // `object` and `origin` (a file) outlive it. `what`: the object, in words.
  Members(const json& object, std::string what, const std::string& origin)
      : object_(object), what_(std::move(what)), origin_(origin) {
    if (!object.is_object()) refuse("is not an object");
  }
  Members(const json& object, std::string what, const std::string& origin, size_t count)
      : Members(object, std::move(what), origin) {
    expect_count(count);
  }

  // With every known key asked for, the count leaves no room for an unknown one.
  void expect_count(size_t count) const {
    if (object_.size() != count) refuse(fmt::format("has {} keys instead of {}", object_.size(), count));
  }
  const json& at(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) refuse(fmt::format("has no \"{}\"", key));
    return *found;
  }
  std::string text(const char* key) const {
    const json& value = at(key);
    if (!value.is_string()) refuse(fmt::format("has {} as its \"{}\", which must be a string", value.dump(), key));
    return value.get<std::string>();
  }
  uint64_t unsigned_number(const char* key) const {
    const json& value = at(key);
    if (!value.is_number_unsigned())
      refuse(fmt::format("has {} as its \"{}\", which must be a number from 0 on", value.dump(), key));
    return value.get<uint64_t>();
  }
  int64_t number(const char* key) const { return to_signed(at(key), key); }
  const json& array(const char* key) const {
    const json& value = at(key);
    if (!value.is_array()) refuse(fmt::format("has a \"{}\" that is not an array", key));
    return value;
  }
  const json& object(const char* key) const {
    const json& value = at(key);
    if (!value.is_object()) refuse(fmt::format("has a \"{}\" that is not an object", key));
    return value;
  }

  std::map<std::string, std::string> texts(const char* key) const {
    std::map<std::string, std::string> texts;
    for (const auto& [name, value] : object(key).items()) {
      if (!value.is_string())
        refuse(fmt::format("has {} as \"{}\" of its \"{}\", which must be a string", value.dump(), name, key));
      texts.emplace(name, value.get<std::string>());
    }
    return texts;
  }

  int64_t to_signed(const json& value, const char* key) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      refuse(fmt::format("has {} as its \"{}\", which must be a number from 0 on", value.dump(), key));
    }
    return value.get<int64_t>();
  }
  uint64_t to_hash(const json& value) const {
    uint64_t hash = 0;
    if (value.is_string()) {
      const auto& digits = value.get_ref<const std::string&>();
      const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), hash, 16);
      if (digits.size() == 16 && error == std::errc() && end == digits.data() + digits.size()) return hash;
    }
    refuse(fmt::format("has {} as a hash, which must be 16 hexadecimal digits", value.dump()));
  }

  [[noreturn]] void refuse(const std::string& reason) const {
    damaged("{} is damaged: {} {}.", origin_, what_, reason);
  }

 private:
  const json& object_;
  const std::string what_;
  const std::string& origin_;
};

}  // namespace conclave
