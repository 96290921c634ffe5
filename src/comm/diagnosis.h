// Who is to blame when a collective fails: pure reasoning over the ranks' reports, without a store or a process.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "comm/rank_report.h"

namespace conclave {

// What was seen of one rank while the failure was examined.
struct Observation {
  std::optional<RankReport> report;     // nothing: it never wrote one
  double silent_seconds = 0;            // since its beat last grew, as far as was watched
  bool is_silent = false;               // for longer than a living rank ever is
  std::optional<Operation> heard = {};  // the newest collective in which the examining rank got something from it
  std::string trouble = {};             // of its process, in words (trouble_of_process()); empty: none is known
};

// What the examining rank ran into.
struct Failure {
  std::optional<Operation> operation;  // nothing: no collective, the rank merely noticed
  int peer = -1;                       // the other end of the connection that failed; -1: not known
  bool timed_out = false;
  double waited_seconds = 0;
  std::string error;  // the transport's words
};

// Why the job ends.
struct Diagnosis {
  std::string text;       // one sentence that names the culprits
  std::vector<int> lost;  // the ranks that are gone or hang: they cannot tell the user themselves
};

// Names the culprits, for example "rank 1 is lost: no heartbeat for 5 s; its process (4711) has ended; it was last in
// all_to_all #512 of the expert axis". Silent ranks come first: whatever else is wrong follows from them. After a
// time-out, those who keep the others waiting: they are found by going from the failed collective to the ranks that
// have not called it, and from the collectives that those wait in on. Then ranks that have left. If everybody is well,
// the connection itself failed. `ranks_of`: the ranks of a communicator, by key.
Diagnosis diagnose(int self, const std::vector<Observation>& ranks, const Failure& failure,
                   const std::function<std::vector<int>(const std::string& communicator)>& ranks_of);

// "rank 3" or "ranks 3, 4 and 7".
std::string name_ranks(const std::vector<int>& ranks);

}  // namespace conclave
