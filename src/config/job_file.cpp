#include "config/job_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "config/field_values.h"
#include "config/fields.h"
#include "config/given.h"
#include "config/job_check.h"
#include "config/nearest_name.h"
#include "config/smp_names.h"

namespace conclave {
namespace {

// All names a job file may use.
struct NameCollector {
  std::vector<std::string> sections;
  std::vector<std::string> keys;

  NameCollector() {
    Job job;
    describe(job, *this);
    SmpSettled settled;
    describe(settled, *this);
    for (const OtherName& name : smp_other_names()) keys.emplace_back(name.smp);
  }
  void section(const char* name, const char*) { sections.emplace_back(name); }
  template <class T, class Rule>
  void field(const char* key, const T&, const Rule&, const char*) {
    keys.emplace_back(key);
  }
};

std::string our_name_of(const std::string& key) {
  for (const OtherName& name : smp_other_names()) {
    if (key == name.smp) return name.ours;
  }
  return key;
}

// What was given, under our names. A key may have been given under several names, which must agree.
using GivenByName = std::map<std::string, std::vector<Given>>;

GivenByName by_our_names(std::vector<Given> keys) {
  GivenByName by_name;
  for (Given& given : keys) by_name[our_name_of(given.key)].push_back(std::move(given));
  return by_name;
}

// Moves what was given into the members, key by key, and collects the mistakes.
class Reader {
 public:
  Reader(GivenByName given, std::vector<OrderedMistake> mistakes)
      : given_(std::move(given)), mistakes_(std::move(mistakes)) {}

  Origins origins;

  void section(const char*, const char*) {}

  template <class T, class Rule>
  void field(const char* key, T& value, const Rule& rule, const char*) {
    const auto found = given_.find(key);
    if (found == given_.end()) return;
    const Given* first = nullptr;
    for (const Given& given : found->second) {
      T candidate = value;
      std::string refusal = read_value(given.value, candidate, rule);
      if (refusal.empty()) refusal = check_value(candidate, rule);
      if (!refusal.empty()) {
        add_mistake(given, fmt::format("{} is {}{}", given.key, shown(given.value), refusal), "");
        not_known_.insert(key);
        continue;
      }
      if (first != nullptr && candidate != value) {
        add_mistake(given,
                    fmt::format("{} is {}, but {} is {}, and both mean {}.", given.key, shown(given.value), first->key,
                                shown(first->value), key),
                    fmt::format("Keep one of them{}.", first->place == given.place ? "" : " (" + first->place + ")"));
        not_known_.insert(key);
        continue;
      }
      first = &given;
      value = candidate;
      origins.set(key, given.place);
    }
    given_.erase(found);
  }

  // What no field took.
  void refuse_the_rest(const NameCollector& names) {
    for (const auto& [key, all] : given_) {
      for (const Given& given : all) refuse_unknown(given, names);
    }
    given_.clear();
  }

  bool knows(std::string_view key) const { return !not_known_.contains(key); }
  void add_last(const std::string& text) { mistakes_.push_back({last_, text}); }

  void refuse_if_any() {
    std::stable_sort(mistakes_.begin(), mistakes_.end(),
                     [](const auto& a, const auto& b) { return a.order < b.order; });
    std::vector<std::string> texts;
    for (const OrderedMistake& one : mistakes_) texts.push_back(one.text);
    conclave::refuse_if_any(texts);
  }

 private:
  static constexpr int last_ = std::numeric_limits<int>::max();

  void add_mistake(const Given& given, const std::string& problem, const std::string& remedy) {
    mistakes_.push_back({given.order, mistake(problem, remedy, given.place)});
  }

  void refuse_unknown(const Given& given, const NameCollector& names) {
    if (const auto meant = nearest_key(given.key, names.keys)) {
      add_mistake(given, fmt::format("unknown key {}. Did you mean {}?", given.key, *meant), "");
      return;
    }
    const std::string section = given.key.substr(0, given.key.find('.') + 1);
    std::vector<std::string> keys;
    for (const std::string& key : names.keys) {
      if (key.starts_with(section)) keys.push_back(key.substr(section.size()));
    }
    if (keys.empty()) {
      add_mistake(given, fmt::format("unknown key {}.", given.key),
                  fmt::format("The sections are {}.", fmt::join(names.sections, ", ")));
    } else {
      add_mistake(given, fmt::format("unknown key {}.", given.key),
                  fmt::format("The keys of {} are {}.", section.substr(0, section.size() - 1), fmt::join(keys, ", ")));
    }
  }

  GivenByName given_;
  std::vector<OrderedMistake> mistakes_;
  std::set<std::string, std::less<>> not_known_;
};

// The required keys that are missing.
struct MissingFinder {
  std::string place;
  Reader& reader;

  void section(const char*, const char*) {}
  template <class T, class Rule>
  void field(const char* key, const T& value, const Rule& rule, const char* help) {
    if constexpr (std::is_same_v<Rule, RequiredPath>) {
      if (!rule.always || !value.empty() || !reader.knows(key)) return;
      const std::string section(key, std::string_view(key).find('.'));
      reader.add_last(mistake(fmt::format("{} is missing, and {} needs it: {}.", key, rule.who, help),
                              fmt::format("Add it to the section {}, or give --set {}=...", section, key), place));
    }
  }
};

Job resolve(GivenJob from_file, GivenJob from_overrides, const NameCollector& names, const std::string* file) {
  GivenByName given = by_our_names(std::move(from_file.keys));
  for (auto& [key, values] : by_our_names(std::move(from_overrides.keys))) given[key] = values;
  std::vector<OrderedMistake> mistakes = std::move(from_file.mistakes);
  mistakes.insert(mistakes.end(), from_overrides.mistakes.begin(), from_overrides.mistakes.end());

  Job job;
  Reader reader(std::move(given), std::move(mistakes));
  describe(job, reader);
  SmpSettled settled;
  describe(settled, reader);
  reader.refuse_the_rest(names);
  job.origins = reader.origins;
  for (const std::string& text : mistakes_between_keys(job, [&](std::string_view key) { return reader.knows(key); }))
    reader.add_last(text);
  if (file != nullptr) describe(job, MissingFinder{*file, reader});
  reader.refuse_if_any();
  return job;
}

struct Printer {
  std::string text = "# The resolved job: every key with its value. It reads back to the same job.\n";

  void section(const char* name, const char* help) { text += fmt::format("\n{}:  # {}\n", name, help); }
  template <class T, class Rule>
  void field(const char* key, const T& value, const Rule& rule, const char* help) {
    const std::string name(std::string_view(key).substr(std::string_view(key).find('.') + 1));
    text += fmt::format("  {:<40}  # {}\n", fmt::format("{}: {}", name, print_value(value, rule)), help);
  }
};

struct HelpWriter {
  std::string text;

  void section(const char* name, const char* help) { text += fmt::format("{}: {}\n", name, help); }
  template <class T, class Rule>
  void field(const char* key, const T& value, const Rule& rule, const char* help) {
    const std::string name(std::string_view(key).substr(std::string_view(key).find('.') + 1));
    text += fmt::format("  {:<27} {}; {}\n{:30}{}\n", name, describe_type(value, rule), default_words(value, rule), "",
                        help);
  }

 private:
  template <class T, class Rule>
  static std::string default_words(const T& value, const Rule& rule) {
    if constexpr (std::is_same_v<Rule, RequiredPath>) {
      return fmt::format("required by {}", rule.who);
    } else if constexpr (std::is_same_v<Rule, Only>) {
      return fmt::format("only {} in this version", rule.value);
    } else {
      return "default " + print_value(value, rule);
    }
  }
};

}  // namespace

Job read_job(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  const NameCollector names;
  const std::string place = file.string();
  return resolve(read_given_file(file, names.sections, names.keys), read_given_overrides(overrides), names, &place);
}

Job job_from_overrides(const std::vector<std::string>& overrides) {
  return resolve({}, read_given_overrides(overrides), NameCollector(), nullptr);
}

std::string print_job(const Job& job) {
  Printer printer;
  describe(job, printer);
  return printer.text;
}

std::string job_help() {
  HelpWriter writer;
  const Job defaults;
  describe(defaults, writer);
  std::string text =
      "The job file (YAML or JSON). Relative paths are relative to the folder the program is started in.\n\n" +
      writer.text + "\nSMP's other names are accepted too:\n";
  for (const OtherName& name : smp_other_names()) text += fmt::format("  {} means {}\n", name.smp, name.ours);
  return text;
}

}  // namespace conclave
