// The description of a file's keys: each with the member that holds its value, its rule and its meaning. Reading, help,
// printing and validation all go by it. A key's default is what a default-constructed section holds.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "config/field_values.h"

namespace conclave {

// A key, "section.key", bound to the member that holds its value; whatever the member's type.
class Field {
 public:
  Field(const char* key, const char* help) : key_(key), help_(help) {}
  virtual ~Field() = default;

  const std::string& key() const { return key_; }
  std::string name() const { return key_.substr(key_.find('.') + 1); }  // without its section
  const char* help() const { return help_; }

  // Takes a value that a user wrote. Returns the refusal of one that its type or rule does not allow, which changes
  // nothing.
  virtual std::string take(const GivenValue& given) = 0;
  virtual std::string printed() const = 0;
  virtual std::string type_in_words() const = 0;
  virtual bool is_path() const = 0;
  virtual bool may_be_null() const = 0;
  virtual bool is_given() const = 0;                 // not null, nor an empty path
  virtual const RequiredPath* required() const = 0;  // null: it need not be given
  virtual const Only* only() const = 0;              // null: it has more than one value

 private:
  std::string key_;
  const char* help_;
};

template <class T, class Rule>
class FieldOf final : public Field {
 public:
  FieldOf(const char* key, T& value, Rule rule, const char* help)
      : Field(key, help), value_(value), rule_(std::move(rule)) {}

  std::string take(const GivenValue& given) override {
    T candidate = value_;
    std::string refusal = read_value(given, candidate, rule_);
    if (refusal.empty()) refusal = check_value(candidate, rule_);
    if (refusal.empty()) value_ = std::move(candidate);
    return refusal;
  }
  std::string printed() const override { return print_value(value_, rule_); }
  std::string type_in_words() const override { return describe_type(value_, rule_); }
  bool is_path() const override {
    return std::is_same_v<T, std::filesystem::path> || std::is_same_v<T, std::optional<std::filesystem::path>> ||
           std::is_same_v<T, TrainingData> || std::is_same_v<T, std::optional<ValidationData>>;
  }
  bool may_be_null() const override {
    return IsOptional<T>::value || std::is_same_v<T, std::filesystem::path> || std::is_same_v<T, TrainingData>;
  }
  bool is_given() const override {
    if constexpr (IsOptional<T>::value) return value_.has_value();
    if constexpr (std::is_same_v<T, std::filesystem::path> || std::is_same_v<T, TrainingData>) return !value_.empty();
    return true;
  }
  const RequiredPath* required() const override { return rule_as<RequiredPath>(); }
  const Only* only() const override { return rule_as<Only>(); }

 private:
  template <class Wanted>
  const Wanted* rule_as() const {
    if constexpr (std::is_same_v<Rule, Wanted>) return &rule_;
    return nullptr;
  }

  T& value_;
  Rule rule_;
};

// The keys of a file, section by section, in the order of the description. What they are bound to outlives them.
class Fields {
 public:
  // Begins a section: the fields that follow are of it.
  void section(const char* name, const char* help) { sections_.push_back({name, help, {}}); }

  template <class T, class Rule>
  void field(const char* key, T& value, Rule rule, const char* help) {
    sections_.back().fields.push_back(std::make_unique<FieldOf<T, Rule>>(key, value, std::move(rule), help));
  }

  struct Section {
    const char* name;
    const char* help;
    std::vector<std::unique_ptr<Field>> fields;
  };
  // Of fields that have a name: those of a temporary would be gone.
  const std::vector<Section>& sections() const& { return sections_; }
  void sections() const&& = delete;
  std::vector<Field*> all() const&;
  void all() const&& = delete;
  Field& at(std::string_view key) const;

 private:
  std::vector<Section> sections_;
};

// YAML that reads back the same, each key with its meaning. `width`: of key and value, before the meaning.
std::string print_fields(const Fields& fields, size_t width);

}  // namespace conclave
