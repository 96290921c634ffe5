// Data sets as a job names them: one, or several with names and weights.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace conclave {

struct GivenValue;

struct DataSet {
  std::string name;              // in metrics and messages; read without one: the last part of the prefix
  std::filesystem::path prefix;  // of a .bin/.idx pair
  double weight = 1;             // of training: over the sum of all, its share of the samples

  bool operator==(const DataSet&) const = default;
};

// data.train: a prefix, or a list of prefixes and of {path, weight, name}.
struct TrainingData {
  std::vector<DataSet> sets;  // names differ

  bool empty() const { return sets.empty(); }
  void clear() { sets.clear(); }
  bool operator==(const TrainingData&) const = default;
};

// data.validation: a prefix, names with their prefixes, or a list as of data.train, without weights.
struct ValidationData {
  std::vector<DataSet> sets;  // names differ

  // Whether there are names to tell sets by.
  bool is_named() const;
  bool operator==(const ValidationData&) const = default;
};

// "data/code, data/chat".
std::string prefixes_of(const std::vector<DataSet>& sets);

// "code with weight 0.7, chat with weight 0.2"; "at most one set": its name may be that of its place.
std::string names_and_weights_of(const std::vector<DataSet>& sets);

std::string read_value(const GivenValue& given, TrainingData& value);
std::string read_value(const GivenValue& given, ValidationData& value);
std::string print_value(const TrainingData& value);
std::string print_value(const ValidationData& value);
inline std::string type_words(const TrainingData&) {
  return "a path, or a list of {path, weight, name}";
}
inline std::string type_words(const ValidationData&) {
  return "a path, or names with their paths";
}

}  // namespace conclave
