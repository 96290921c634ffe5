#include "config/written_keys.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <optional>
#include <sstream>
#include <string_view>

#include "base/error.h"
#include "config/job_text.h"
#include "config/mistake.h"
#include "config/nearest_name.h"

namespace conclave {
namespace {

constexpr int deepest = 3;  // of lists and groups in each other: no key takes more

GivenValue value_of(const YAML::Node& node, int depth = 0) {
  switch (node.Type()) {
    case YAML::NodeType::Sequence: {
      GivenValue list{GivenValue::Kind::list, ""};
      if (depth < deepest)
        for (const YAML::Node& element : node) list.members.emplace_back("", value_of(element, depth + 1));
      return list;
    }
    case YAML::NodeType::Map: {
      GivenValue group{GivenValue::Kind::group, ""};
      if (depth < deepest)
        for (const auto& pair : node)
          group.members.emplace_back(pair.first.IsScalar() ? pair.first.Scalar() : shown(value_of(pair.first, deepest)),
                                     value_of(pair.second, depth + 1));
      return group;
    }
    case YAML::NodeType::Scalar: {
      // The library marks a scalar without quotes by the tag "?", one with quotes by "!". Any other tag (!!str, ...)
      // makes text of it.
      const bool plain = node.Tag() == "?" || node.Tag().empty();
      return {plain ? GivenValue::Kind::plain : GivenValue::Kind::quoted, node.Scalar()};
    }
    default:
      return {};
  }
}

// The number of the first line that is indented with a tab, which YAML's own message does not say; 0: none.
int line_indented_with_tab(const std::string& text) {
  std::istringstream lines(text);
  int number = 1;
  for (std::string line; std::getline(lines, line); ++number) {
    const std::string indent = line.substr(0, line.find_first_not_of(" \t"));
    if (indent.size() < line.size() && indent.find('\t') != std::string::npos) return number;
  }
  return 0;
}

[[noreturn]] void refuse_yaml(const YAML::Exception& error, const std::string& text, const std::string& name,
                              const std::string& what) {
  if (const int line = line_indented_with_tab(text))
    throw UserError(mistake(fmt::format("the {} is not valid YAML: a line begins with a tab.", what),
                            "Indent with spaces.", fmt::format("{}, line {}", name, line)));
  throw UserError(mistake(fmt::format("the {} is not valid YAML: {}.", what, error.msg), "",
                          fmt::format("{}, line {}, column {}", name, error.mark.line + 1, error.mark.column + 1)));
}

// Walks the two levels of a job file.
class FileWalk {
 public:
  FileWalk(std::string name, const std::vector<std::string>& sections, const std::vector<std::string>& keys)
      : name_(std::move(name)), sections_(sections), keys_(keys) {}

  GivenJob read(const YAML::Node& root) {
    for (const auto& pair : root) {
      const YAML::Node& key = pair.first;
      const YAML::Node& value = pair.second;
      const int line = key.Mark().line + 1;
      const std::string section = key.IsScalar() ? key.Scalar() : shown(value_of(key));
      if (!key.IsScalar() || std::find(sections_.begin(), sections_.end(), section) == sections_.end()) {
        refuse_section(section, line);
      } else if (is_new(section, line) && !value.IsNull()) {
        read_section(section, value, line);
      }
    }
    return std::move(found_);
  }

 private:
  void read_section(const std::string& section, const YAML::Node& keys, int section_line) {
    if (!keys.IsMap()) {
      add_mistake(fmt::format("{} is {}, but it must be a group of keys.", section, shown(value_of(keys))), "",
                  section_line);
      return;
    }
    for (const auto& pair : keys) {
      const YAML::Node& key = pair.first;
      const int line = key.Mark().line + 1;
      const std::string name = section + "." + (key.IsScalar() ? key.Scalar() : shown(value_of(key)));
      if (is_new(name, line)) found_.keys.push_back({name, value_of(pair.second), place(line), line});
    }
  }

  bool is_new(const std::string& name, int line) {
    const auto [first, inserted] = line_of_.try_emplace(name, line);
    if (!inserted)
      add_mistake(fmt::format("{} is given twice, in lines {} and {}.", name, first->second, line), "Keep one of them.",
                  line);
    return inserted;
  }

  void refuse_section(const std::string& section, int line) {
    std::optional<std::string> meant = nearest_name(section, sections_);
    if (!meant) meant = nearest_key("." + section, keys_);
    if (meant) {
      add_mistake(fmt::format("unknown section {}. Did you mean {}?", section, *meant), "", line);
    } else {
      add_mistake(fmt::format("unknown section {}.", section),
                  fmt::format("The sections are {}.", fmt::join(sections_, ", ")), line);
    }
  }

  void add_mistake(const std::string& problem, const std::string& remedy, int line) {
    found_.mistakes.push_back({line, mistake(problem, remedy, place(line))});
  }

  std::string place(int line) const { return fmt::format("{}, line {}", name_, line); }

  std::string name_;
  const std::vector<std::string>& sections_;
  const std::vector<std::string>& keys_;
  std::map<std::string, int> line_of_;
  GivenJob found_;
};

constexpr int after_every_line = 1 << 30;

// Where a quoted text at the beginning ends, in YAML's two ways of writing one; npos: nowhere.
size_t end_of_quoted(std::string_view text) {
  const char quote = text[0];
  for (size_t at = 1; at < text.size(); ++at) {
    if (text[at] == '\\' && quote == '"') {
      ++at;
    } else if (text[at] == quote) {
      if (quote == '"' || text.substr(at + 1, 1) != "'") return at + 1;
      ++at;
    }
  }
  return std::string_view::npos;
}

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

// The value of an override. It is YAML but for comments, of which a command line has none: what stands there without
// quotes is the value as a whole.
GivenValue value_of_override(std::string_view text) {
  const std::string_view whole = trimmed(text);
  const GivenValue value = value_of(YAML::Load(std::string(whole)));
  if (whole.starts_with('"') || whole.starts_with('\'')) {
    if (end_of_quoted(whole) != whole.size()) throw YAML::Exception(YAML::Mark(), "something follows the quotes");
    return value;
  }
  const bool is_null = whole.empty() || whole == "~" || whole == "null" || whole == "Null" || whole == "NULL";
  const bool is_part =
      value.kind == GivenValue::Kind::null ? !is_null : value.kind == GivenValue::Kind::plain && value.text != whole;
  return is_part ? GivenValue{GivenValue::Kind::plain, std::string(whole)} : value;
}

// The keys of these names: an override may have forgotten the section.
std::vector<std::string> keys_named(std::string_view name, const std::vector<std::string>& keys) {
  std::vector<std::string> found;
  for (const std::string& key : keys)
    if (key.substr(key.find('.') + 1) == name) found.push_back(key);
  return found;
}

std::string remedy_for_override(const std::string& key, const std::string& rest, const std::vector<std::string>& keys) {
  std::vector<std::string> names;
  for (const std::string& one : keys) names.push_back(one.substr(one.find('.') + 1));
  std::vector<std::string> meant;
  if (const auto near = nearest_name(key, names)) meant = keys_named(*near, keys);
  if (meant.empty()) return "Write it like --set run.steps=100.";
  for (std::string& name : meant) name = fmt::format("--set {}{}", name, rest.empty() ? "=..." : rest);
  return fmt::format("Did you mean {}?", any_of(meant));
}

constexpr size_t most_shown = 200;

// A value of a megabyte would hide what is wrong with it.
std::string beginning_of(const std::string& text) {
  if (text.size() <= most_shown) return text;
  size_t end = most_shown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;  // within a character
  return fmt::format("{}... ({} bytes)", text.substr(0, end), text.size());
}

}  // namespace

std::string shown(const GivenValue& value) {
  switch (value.kind) {
    case GivenValue::Kind::null:
      return "null";
    case GivenValue::Kind::plain:
      return beginning_of(value.text);
    case GivenValue::Kind::quoted:
      return fmt::format("\"{}\"", beginning_of(value.text));
    case GivenValue::Kind::list:
      return "a list";
    case GivenValue::Kind::group:
      return "a group of keys";
  }
  return "";
}

GivenJob read_given_file(const std::filesystem::path& file, const std::vector<std::string>& sections,
                         const std::vector<std::string>& keys, const std::string& what) {
  const std::string content = read_job_text(file, what);
  const std::string name = file == "-" ? "standard input" : file.string();
  std::vector<YAML::Node> documents;
  try {
    documents = YAML::LoadAll(content);
  } catch (const YAML::Exception& error) {
    refuse_yaml(error, content, name, what);
  }
  if (documents.size() > 1)
    throw UserError(mistake(fmt::format("the {} holds {} YAML documents, but it must be one.", what, documents.size()),
                            "Remove the lines `---` and what follows the first document.", name));
  if (documents.empty() || documents[0].IsNull()) return {};
  if (!documents[0].IsMap())
    throw UserError(
        mistake(fmt::format("the {} is {}, but it must be a group of sections.", what, shown(value_of(documents[0]))),
                fmt::format("The sections are {}.", fmt::join(sections, ", ")), name));
  return FileWalk(name, sections, keys).read(documents[0]);
}

GivenJob read_given_overrides(const std::vector<std::string>& overrides, const std::vector<std::string>& keys) {
  GivenJob found;
  int order = after_every_line;
  for (const std::string& text : overrides) {
    ++order;
    const std::string place = "--set " + beginning_of(text);
    const size_t equals = text.find('=');
    const std::string key = text.substr(0, equals);
    const size_t dot = key.find('.');
    if (equals == std::string::npos || dot == std::string::npos || dot == 0 || dot + 1 == key.size()) {
      found.mistakes.push_back({order, mistake(fmt::format("{} is not of the form section.key=value.", place),
                                               remedy_for_override(key, text.substr(key.size()), keys), "")});
      continue;
    }
    try {
      Given given{key, value_of_override(text.substr(equals + 1)), place, order};
      std::erase_if(found.keys, [&](const Given& earlier) { return earlier.key == key; });
      found.keys.push_back(std::move(given));
    } catch (const YAML::Exception& error) {
      found.mistakes.push_back({order, mistake(fmt::format("the value of {} is not valid YAML: {}.", key, error.msg),
                                               "Put text with special characters into quotes.", place)});
    }
  }
  return found;
}

}  // namespace conclave
