#include "comm/diagnosis.h"

#include <fmt/core.h>

#include <algorithm>
#include <set>

namespace conclave {
namespace {

// Its report is up to a beat older than what came from it.
bool was_heard_since_its_report(const Observation& rank) {
  if (!rank.heard || !rank.report) return rank.heard.has_value();
  const auto reported = rank.report->numbers.find(rank.heard->communicator);
  return reported == rank.report->numbers.end() || reported->second < rank.heard->number;
}

std::string last_seen(const Observation& rank) {
  if (was_heard_since_its_report(rank))
    return "the last collective that is known to have reached it is " + rank.heard->text();
  if (!rank.report || !rank.report->last) return "no collective is known that it called";
  if (rank.report->waits_in) return "it was last in " + rank.report->waits_in->text();
  return "it was last in no collective, after " + rank.report->last->text();
}

std::string describe_lost(const std::vector<int>& lost, const std::vector<Observation>& ranks) {
  double seconds = ranks[lost[0]].silent_seconds;
  for (int rank : lost) seconds = std::min(seconds, ranks[rank].silent_seconds);
  std::string text =
      fmt::format("{} {} lost: no heartbeat for {:.0f} s", name_ranks(lost), lost.size() == 1 ? "is" : "are", seconds);
  for (int rank : lost) {
    if (ranks[rank].trouble.empty()) continue;
    text += lost.size() == 1 ? "; " + ranks[rank].trouble : fmt::format("; rank {}: {}", rank, ranks[rank].trouble);
  }
  if (lost.size() == 1) text += "; " + last_seen(ranks[lost[0]]);
  return text;
}

// The members of the operation's group that have not called it.
std::vector<int> missing_from(const Operation& operation, const std::vector<Observation>& ranks,
                              const std::vector<int>& group) {
  std::vector<int> missing;
  for (int rank : group) {
    const auto& report = ranks[rank].report;
    const auto number = report ? report->numbers.find(operation.communicator) : decltype(report->numbers.end()){};
    if (!report || number == report->numbers.end() || number->second < operation.number) missing.push_back(rank);
  }
  return missing;
}

// The ranks at the ends of the chains of waiting: they keep the others waiting and wait for nobody themselves.
std::vector<int> find_holders(int self, const Operation& failed, const std::vector<Observation>& ranks,
                              const std::function<std::vector<int>(const std::string&)>& ranks_of) {
  std::set<int> holders;
  std::set<int> seen{self};
  std::vector<Operation> to_follow{failed};
  while (!to_follow.empty()) {
    const Operation operation = to_follow.back();
    to_follow.pop_back();
    for (int rank : missing_from(operation, ranks, ranks_of(operation.communicator))) {
      if (!seen.insert(rank).second) continue;
      const auto& report = ranks[rank].report;
      if (report && report->waits_in) {
        to_follow.push_back(*report->waits_in);
      } else {
        holders.insert(rank);
      }
    }
  }
  return {holders.begin(), holders.end()};
}

bool has_left(const Observation& rank) {
  return rank.report && rank.report->state != RankState::running;
}

std::string describe_holder(int rank, const Observation& seen, double waited_seconds) {
  if (seen.report && seen.report->state == RankState::finished)
    return fmt::format("rank {} has finished, but others wait for it", rank);
  if (seen.report && seen.report->state == RankState::stopped) return fmt::format("rank {} has stopped", rank);
  return fmt::format(
      "rank {} hangs: it lives, but for {:.0f} s it has not come to a collective that others wait in; {}", rank,
      waited_seconds, last_seen(seen));
}

}  // namespace

std::string name_ranks(const std::vector<int>& ranks) {
  if (ranks.size() == 1) return fmt::format("rank {}", ranks[0]);
  std::string text = "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i)
    text += fmt::format("{}{}", i == 0 ? "" : i + 1 == ranks.size() ? " and " : ", ", ranks[i]);
  return text;
}

Diagnosis diagnose(int self, const std::vector<Observation>& ranks, const Failure& failure,
                   const std::function<std::vector<int>(const std::string&)>& ranks_of) {
  std::vector<int> lost;
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank)
    if (rank != self && ranks[rank].is_silent) lost.push_back(rank);
  if (!lost.empty()) return {describe_lost(lost, ranks), lost};

  if (failure.operation && failure.timed_out) {
    Diagnosis holders;
    for (int rank : find_holders(self, *failure.operation, ranks, ranks_of)) {
      holders.text += (holders.text.empty() ? "" : "; ") + describe_holder(rank, ranks[rank], failure.waited_seconds);
      if (!has_left(ranks[rank])) holders.lost.push_back(rank);
    }
    if (!holders.text.empty()) return holders;
    if (failure.peer >= 0)
      return {fmt::format("rank {} lives and is in the same collective, but its data did not arrive within {:.0f} s: "
                          "the network or that rank is stuck",
                          failure.peer, failure.waited_seconds),
              {}};
  }
  for (int rank = 0; rank < static_cast<int>(ranks.size()); ++rank)
    if (rank != self && has_left(ranks[rank]) && (failure.peer < 0 || rank == failure.peer))
      return {describe_holder(rank, ranks[rank], failure.waited_seconds), {}};
  if (failure.peer >= 0)
    return {fmt::format("the connection to rank {} broke, although that rank lives: {}", failure.peer, failure.error),
            {}};
  return {"the transport failed, although every rank lives: " + failure.error, {}};
}

}  // namespace conclave
