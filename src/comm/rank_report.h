// What each rank says of itself in the store, once a beat, so that the others can tell who is lost, hung or done when a
// collective fails.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace conclave {

// One call of a collective. Ranks call the collectives of a communicator in the same order, so equal numbers are the
// same collective.
struct Operation {
  std::string communicator;  // key, unique in the job: "<axis>/<first rank of the group>"
  std::string name;          // "all_to_all"
  uint64_t number = 0;       // counts the communicator's calls from 1; 0: its ranks' first meeting

  std::string text() const;  // "all_to_all #512 of the expert axis"
};

enum class RankState { running, stopped, finished };  // stopped: leaves because of an error, here or elsewhere

struct RankReport {
  uint64_t beat = 0;  // grows as long as the rank's process lives
  RankState state = RankState::running;
  std::optional<Operation> waits_in = {};        // the collective that the rank waits for now
  std::optional<Operation> last = {};            // the newest collective that it called
  std::map<std::string, uint64_t> numbers = {};  // of each communicator, the newest call
  int process = 0;                               // its number on its host
  std::string host = {};                         // see name_of_host(); empty: not known

  std::string encode() const;
  static std::optional<RankReport> decode(std::string_view text);  // nothing of a text that encode() did not write
};

}  // namespace conclave
