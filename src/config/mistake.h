// How a user's mistake reads: the problem, on the next line the remedy, at the end the place. `error: ` goes before it.
//
//   error: parallel.expert_parallel_degree is 3, but the model has 8 experts and they must divide evenly.
//          Use 1, 2, 4 or 8.   (job.yaml, line 12)
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

// Where each key of a job was given, so that a mistake found later (a degree that does not suit the world) can still
// name its line.
class Origins {
 public:
  void set(const std::string& key, const std::string& place) { places_[key] = place; }
  // `key` is "section.key". "job.yaml, line 12" or "--set run.steps=5"; empty for a default.
  std::string of(std::string_view key) const;

 private:
  std::map<std::string, std::string, std::less<>> places_;
};

// One mistake. An empty remedy or place is left out.
std::string mistake(std::string_view problem, std::string_view remedy, std::string_view place);

// Throws a UserError that holds all of them, one paragraph each; every paragraph but the first begins with `error: `,
// which whoever prints the error puts before the first. Returns if there are none.
void refuse_if_any(const std::vector<std::string>& mistakes);

// "1, 2, 4 or 8".
std::string any_of(const std::vector<std::string>& words);

}  // namespace conclave
