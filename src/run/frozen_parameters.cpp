#include "run/frozen_parameters.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "families/family.h"

namespace conclave {
namespace {

constexpr const char* key = "train.freeze";

bool is_number(const std::string& part) {
  return !part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// "model.layers.*.mlp.gate.weight" of the same of layer 3.
std::string without_numbers(const std::string& name) {
  std::string general;
  for (size_t begin = 0; begin <= name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    general += (begin == 0 ? "" : ".") + (is_number(part) ? "*" : part);
    begin = end + 1;
  }
  return general;
}

// Every kind of name once, in the order of the model.
std::string names_in_words(const std::vector<DiskNames>& all) {
  std::vector<std::string> kinds;
  for (const DiskNames& names : all)
    for (const DiskTensor& part : names.parts) {
      std::string kind = without_numbers(part.name);
      if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) kinds.push_back(std::move(kind));
    }
  return fmt::format("{}", fmt::join(kinds, ", "));
}

[[noreturn]] void refuse(const Job& job, const std::string& problem, const std::string& remedy) {
  throw UserError(mistake(problem, remedy, job.origins.of(key)));
}

// Of the names, those that some pattern matches.
std::vector<std::string> matched(const NameList& patterns, const std::vector<DiskTensor>& names) {
  std::vector<std::string> found;
  for (const DiskTensor& tensor : names)
    if (std::any_of(patterns.names.begin(), patterns.names.end(),
                    [&](const std::string& pattern) { return matches(pattern, tensor.name); }))
      found.push_back(tensor.name);
  return found;
}

void refuse_unused_patterns(const Job& job, const std::vector<DiskNames>& all) {
  for (const std::string& pattern : job.train.freeze.names) {
    const NameList alone{{pattern}};
    const bool is_used = std::any_of(all.begin(), all.end(), [&](const DiskNames& names) {
      return !matched(alone, names.parts).empty() || !matched(alone, names.alternative).empty();
    });
    if (!is_used)
      refuse(job, fmt::format("{} has the pattern {}, which matches no parameter of the model.", key, pattern),
             fmt::format("Names are: {}.", names_in_words(all)));
  }
}

void refuse_part(const Job& job, const DiskNames& names, const std::vector<std::string>& found) {
  std::string other;
  for (const DiskTensor& part : names.parts)
    if (std::find(found.begin(), found.end(), part.name) == found.end()) {
      other = part.name;
      break;
    }
  refuse(job,
         fmt::format("{} matches {}, but not {}, and the two are one parameter here ({}).", key, found.front(), other,
                     names.parameter),
         "Freeze both or neither.");
}

}  // namespace

std::set<std::string> frozen_parameters(const Job& job, const ModelConfig& model) {
  const NameList& patterns = job.train.freeze;
  if (patterns.empty()) return {};
  const std::vector<DiskNames> all = disk_names(model);
  refuse_unused_patterns(job, all);
  std::set<std::string> frozen;
  for (const DiskNames& names : all) {
    const std::vector<std::string> found = matched(patterns, names.parts);
    if (!found.empty() && found.size() < names.parts.size()) refuse_part(job, names, found);
    if (!found.empty() || !matched(patterns, names.alternative).empty()) frozen.insert(names.parameter);
  }
  if (frozen.size() == all.size())
    refuse(job, fmt::format("{} matches every parameter of the model: nothing is left to train.", key),
           "Leave out a pattern.");
  return frozen;
}

}  // namespace conclave
