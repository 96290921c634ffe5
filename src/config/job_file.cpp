#include "config/job_file.h"

#include <fmt/format.h>

#include "config/field_reader.h"
#include "config/job_check.h"
#include "config/smp_names.h"
#include "config/written_keys.h"

namespace conclave {
namespace {

// Of a job and of SMP.
FieldNames names_of_a_job() {
  Job job;
  SmpSettled settled;
  FieldNames names = names_of(fields_of(job));
  const FieldNames of_smp = names_of(fields_of(settled));
  names.keys.insert(names.keys.end(), of_smp.keys.begin(), of_smp.keys.end());
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

// `place`: where they were to be.
void refuse_missing(const Fields& fields, const std::string& place, FieldReader& reader) {
  for (const Fields::Section& section : fields.sections()) {
    for (const auto& field : section.fields) {
      const RequiredPath* required = field->required();
      if (required == nullptr || !required->always || field->is_given() || !reader.knows(field->key())) continue;
      reader.add_last(
          mistake(fmt::format("{} is missing, and {} needs it: {}.", field->key(), required->who, field->help()),
                  fmt::format("Add it to the section {}, or give --set {}=...", section.name, field->key()), place));
    }
  }
}

Job resolve(GivenJob from_file, GivenJob from_overrides, const FieldNames& names, const std::string* file) {
  GivenByName given = by_our_names(std::move(from_file.keys));
  for (auto& [key, values] : by_our_names(std::move(from_overrides.keys))) given[key] = values;
  std::vector<OrderedMistake> mistakes = std::move(from_file.mistakes);
  mistakes.insert(mistakes.end(), from_overrides.mistakes.begin(), from_overrides.mistakes.end());

  Job job;
  SmpSettled settled;
  const Fields fields = fields_of(job);
  FieldReader reader(std::move(given), std::move(mistakes));
  reader.read(fields);
  reader.read(fields_of(settled));
  reader.refuse_the_rest(names);
  job.origins = reader.origins();
  for (const std::string& text : mistakes_between_keys(job, [&](std::string_view key) { return reader.knows(key); }))
    reader.add_last(text);
  if (file != nullptr) refuse_missing(fields, *file, reader);
  reader.refuse_if_any();
  return job;
}

std::string default_in_words(const Field& field) {
  if (const RequiredPath* required = field.required()) return fmt::format("required by {}", required->who);
  if (const Only* only = field.only()) return fmt::format("only {} in this version", only->value);
  return "default " + field.printed();
}

}  // namespace

Job read_job(const std::filesystem::path& file, const std::vector<std::string>& overrides) {
  const FieldNames names = names_of_a_job();
  const std::string place = file.string();
  return resolve(read_given_file(file, names.sections, names.keys), read_given_overrides(overrides, names.keys), names,
                 &place);
}

Job job_from_overrides(const std::vector<std::string>& overrides) {
  const FieldNames names = names_of_a_job();
  return resolve({}, read_given_overrides(overrides, names.keys), names, nullptr);
}

std::string print_job(Job job) {
  return "# The resolved job: every key with its value. It reads back to the same job.\n\n" +
         print_fields(fields_of(job), /*width=*/40);
}

std::string job_help() {
  std::string text =
      "The job file (YAML or JSON). Relative paths are relative to the folder the program is started in.\n\n";
  Job defaults;
  const Fields fields = fields_of(defaults);
  for (const Fields::Section& section : fields.sections()) {
    text += fmt::format("{}: {}\n", section.name, section.help);
    for (const auto& field : section.fields)
      text += fmt::format("  {:<27} {}; {}\n{:30}{}\n", field->name(), field->type_in_words(), default_in_words(*field),
                          "", field->help());
  }
  text += "\nSMP's other names are accepted too:\n";
  for (const OtherName& name : smp_other_names()) text += fmt::format("  {} means {}\n", name.smp, name.ours);
  return text;
}

}  // namespace conclave
