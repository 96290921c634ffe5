// parallel.reshard_after_forward: which units give their gathered parameters back between forward and backward. `true`:
// all; `false`: none, for half the gathers; "all but layers.4-7, layers.9": these stay gathered.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

class ReshardRule {
 public:
  ReshardRule() = default;  // all
  explicit ReshardRule(bool all) : all_(all) {}
  // Nothing if the text is not of the form above. Which units there are is not known here.
  static std::optional<ReshardRule> parse(std::string_view text);

  bool stays_gathered(std::string_view unit) const;
  bool operator==(const ReshardRule&) const = default;
  // As it is written in the job file, without quotes.
  std::string text() const;

  // A unit's name, or the first and the last of consecutive ones: "layers.4" to "layers.7".
  struct Units {
    std::string stem;  // "layers.", or the whole name when there is no number
    std::optional<int64_t> first;
    int64_t last = 0;
    bool operator==(const Units&) const = default;
  };
  const std::vector<Units>& exceptions() const { return exceptions_; }

 private:
  bool all_ = true;
  std::vector<Units> exceptions_;
};

// What is wrong with a rule for a model with these units, some of which are `used_once` in a micro-step; nothing if all
// is well.
struct RuleMistake {
  std::string problem;  // the rest of a sentence that begins with "<key> is <rule>, but "
  std::string remedy;
};
std::optional<RuleMistake> mistake_in(const ReshardRule& rule, const std::vector<std::string>& units,
                                      const std::vector<std::string>& used_once);

}  // namespace conclave
