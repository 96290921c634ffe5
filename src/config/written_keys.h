// What a user wrote, before anything is known of its meaning: keys with a value as text and the place they were written
// at. The one file that knows of YAML.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace conclave {

struct GivenValue {
  enum class Kind {
    null,    // null, ~ or nothing
    plain,   // a word or number without quotes
    quoted,  // text, whatever it looks like
    list,
    group,  // keys with values
  };
  Kind kind = Kind::null;
  std::string text;                                              // of plain and quoted
  std::vector<std::pair<std::string, GivenValue>> members = {};  // of a group, by key; of a list, without keys
};

// The value as it reads in a message: null, 12, "12", a list, a group of keys.
std::string shown(const GivenValue& value);

struct Given {
  std::string key;  // "section.key", as written
  GivenValue value;
  std::string place;  // "job.yaml, line 12" or "--set run.steps=5"
  int order = 0;      // messages are sorted by it: the line in a file; overrides come after every line
};

// A message and its place in the order of all messages.
struct OrderedMistake {
  int order = 0;
  std::string text;
};

struct GivenJob {
  std::vector<Given> keys;  // no key twice
  std::vector<OrderedMistake> mistakes;
};

// The keys of a YAML (hence also JSON) file, which messages call `what`. A key that is given twice, or a section that
// is not one of `sections`, is one of the mistakes. A file that cannot be read or is not YAML is a UserError at once,
// because nothing more can be said of it.
GivenJob read_given_file(const std::filesystem::path& file, const std::vector<std::string>& sections,
                         const std::vector<std::string>& keys, const std::string& what = "job file");

// Overrides of the form section.key=value, the value in YAML without comments. The last one of the same key wins.
// `keys`: those that there are, for what may have been meant.
GivenJob read_given_overrides(const std::vector<std::string>& overrides, const std::vector<std::string>& keys);

}  // namespace conclave
