#include "config/job_file.h"

#include <fmt/format.h>

#include "config/field_printer.h"
#include "config/field_reader.h"
#include "config/field_values.h"
#include "config/fields.h"
#include "config/given.h"
#include "config/job_check.h"
#include "config/smp_names.h"

namespace conclave {
namespace {

NameCollector names_of_a_job() {
  NameCollector names;
  Job job;
  describe(job, names);
  SmpSettled settled;
  describe(settled, names);
  for (const OtherName& name : smp_other_names()) names.keys.emplace_back(name.smp);
  return names;
}

std::string our_name_of(const std::string& key) {
  for (const OtherName& name : smp_other_names()) {
    if (key == name.smp) return name.ours;
  }
  return key;
}

GivenByName by_our_names(std::vector<Given> keys) {
  GivenByName by_name;
  for (Given& given : keys) by_name[our_name_of(given.key)].push_back(std::move(given));
  return by_name;
}

// The required keys that are missing.
struct MissingFinder {
  std::string place;
  FieldReader& reader;

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
  FieldReader reader(std::move(given), std::move(mistakes));
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
  const NameCollector names = names_of_a_job();
  const std::string place = file.string();
  return resolve(read_given_file(file, names.sections, names.keys), read_given_overrides(overrides, names.keys), names,
                 &place);
}

Job job_from_overrides(const std::vector<std::string>& overrides) {
  const NameCollector names = names_of_a_job();
  return resolve({}, read_given_overrides(overrides, names.keys), names, nullptr);
}

std::string print_job(const Job& job) {
  FieldPrinter printer{.text = "# The resolved job: every key with its value. It reads back to the same job.\n"};
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
