// What the ranks of a job tell each other about themselves, in the job's store: reports, the verdict, who has finished.
// One thread at a time uses a board; every call may throw c10d's errors when the store is gone, and sleeps as long as
// the store does not answer.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <optional>
#include <string>
#include <vector>

#include "comm/diagnosis.h"
#include "comm/rank_report.h"

namespace conclave {

class NoticeBoard {
 public:
  explicit NoticeBoard(c10::intrusive_ptr<c10d::Store> store) : store_(std::move(store)) {}

  // Takes the rank's place for this process; false if another process has it, as of another job at the same port.
  bool take_place(int rank, const std::string& process);

  void write_report(int rank, const RankReport& report);
  RankReport report_of(int rank);  // it must have written one; a ForeignTextError if what is there is none
  std::vector<int> ranks_without_report(int world_size);

  // The ranks of a communicator, by key; none if nobody wrote them.
  void write_ranks(const std::string& communicator, const std::vector<int>& ranks);
  std::vector<int> ranks_of(const std::string& communicator);

  // Why the job ends, once that is known. The first verdict stands: write_verdict() returns it. Its words are fit for a
  // terminal, whoever has written them.
  std::optional<Diagnosis> verdict();
  Diagnosis write_verdict(const Diagnosis& verdict);

  enum class Milestone { started, finished, gone };  // gone: reads the board no more
  void reach(Milestone milestone, int rank);
  // Rank 0 looks after each rank, and tells the others when all are there.
  bool all_reached(Milestone milestone, int rank, int world_size);
  // Rank 0 alone.
  bool has_seen_all(Milestone milestone, int world_size);

 private:
  c10::intrusive_ptr<c10d::Store> store_;
};

}  // namespace conclave
