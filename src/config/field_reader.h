// Reads what a user wrote into the members of described fields, strictly: whatever is not understood is refused, all
// mistakes at once.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/fields.h"
#include "config/mistake.h"
#include "config/written_keys.h"

namespace conclave {

// The names that a file may have.
struct FieldNames {
  std::vector<std::string> sections;
  std::vector<std::string> keys;
};
FieldNames names_of(const Fields& fields);

// What was given, by the key it means. A key may have been given under several names, which must agree.
using GivenByName = std::map<std::string, std::vector<Given>>;

// Moves what was given into the fields' members, and collects the mistakes.
class FieldReader {
 public:
  FieldReader(GivenByName given, std::vector<OrderedMistake> mistakes)
      : given_(std::move(given)), mistakes_(std::move(mistakes)) {}

  void read(const Fields& fields);
  // What no field took.
  void refuse_the_rest(const FieldNames& names);

  const Origins& origins() const { return origins_; }
  // Whether the value is one: the default, or what was given, if it could be read.
  bool knows(std::string_view key) const { return !not_known_.contains(key); }
  void add_last(const std::string& text);

  void refuse_if_any();

 private:
  void read(Field& field, const std::vector<Given>& given);
  void add_mistake(const Given& given, const std::string& problem, const std::string& remedy);
  void refuse_unknown(const Given& given, const FieldNames& names);

  GivenByName given_;
  std::vector<OrderedMistake> mistakes_;
  Origins origins_;
  std::set<std::string, std::less<>> not_known_;
};

}  // namespace conclave
