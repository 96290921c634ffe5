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

  void write_report(int rank, const RankReport& report);
  RankReport report_of(int rank);  // it must have written one
  std::vector<int> ranks_without_report(int world_size);

  // The ranks of a communicator, by key; none if nobody wrote them.
  void write_ranks(const std::string& communicator, const std::vector<int>& ranks);
  std::vector<int> ranks_of(const std::string& communicator);

  // Why the job ends, once that is known. The first verdict stands: write_verdict() returns it.
  std::optional<Diagnosis> verdict();
  Diagnosis write_verdict(const Diagnosis& verdict);

  // How many ranks have started, finished, or read the board no more, after `more` of them.
  int64_t count_started(int more);
  int64_t count_finished(int more);
  int64_t count_gone(int more);

 private:
  c10::intrusive_ptr<c10d::Store> store_;
};

}  // namespace conclave
