// Whom the reports blame. Oracle: stories whose culprit is known.
#include "comm/diagnosis.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const Operation expert_7{"expert/0", "all_to_all", 7};
const Operation shard_3{"shard/1", "all_gather", 3};

// A rank that waits in `waits_in` (or computes), having called the collectives of `numbers`.
Observation rank(std::map<std::string, uint64_t> numbers, std::optional<Operation> waits_in = {}) {
  RankReport report;
  report.numbers = std::move(numbers);
  report.waits_in = waits_in;
  report.last = waits_in ? *waits_in : Operation{"expert/0", "all_to_all", 6};
  return {report, 0, false};
}

Observation silent(Observation seen, double seconds) {
  seen.silent_seconds = seconds;
  seen.is_silent = true;
  return seen;
}

std::vector<int> ranks_of(const std::string& communicator) {
  return communicator == "expert/0" ? std::vector<int>{0, 1} : std::vector<int>{1, 2};
}

Failure timed_out(Operation operation, int peer) {
  return {operation, peer, true, 300, "time-out"};
}

TEST(Diagnosis, a_silent_rank_is_lost_whatever_else_happened) {
  const std::vector<Observation> ranks{rank({{"expert/0", 7}}, expert_7), silent(rank({{"expert/0", 7}}, expert_7), 5),
                                       rank({})};
  EXPECT_EQ(diagnose(0, ranks, {expert_7, 1, false, 0, "reset"}, ranks_of).text,
            "rank 1 is lost: no heartbeat for 5 s; it was last in all_to_all #7 of the expert axis");
  EXPECT_EQ(diagnose(2, ranks, {}, ranks_of).text,
            "rank 1 is lost: no heartbeat for 5 s; it was last in all_to_all #7 of the expert axis");
}

// Its report is of its first beat; what came from it since then is known better.
TEST(Diagnosis, a_lost_ranks_last_sign_counts_before_an_older_report) {
  Observation stopped = silent({RankReport{.beat = 1}, 0, false, {}, ""}, 32);
  std::vector<Observation> ranks{rank({{"expert/0", 7}}, expert_7), stopped};
  EXPECT_EQ(diagnose(0, ranks, {}, ranks_of).text,
            "rank 1 is lost: no heartbeat for 32 s; no collective is known that it called");
  ranks[1].heard = expert_7;
  ranks[1].trouble = "its process (4711) is stopped";
  EXPECT_EQ(
      diagnose(0, ranks, {}, ranks_of).text,
      "rank 1 is lost: no heartbeat for 32 s; its process (4711) is stopped; the last collective that is known to "
      "have reached it is all_to_all #7 of the expert axis");
  ranks[1].report = rank({{"expert/0", 8}}, Operation{"expert/0", "all_to_all", 8}).report;
  EXPECT_THAT(diagnose(0, ranks, {}, ranks_of).text, HasSubstr("it was last in all_to_all #8 of the expert axis"));
}

TEST(Diagnosis, the_trouble_of_several_lost_ranks_is_told_of_each) {
  std::vector<Observation> ranks{rank({}), silent(rank({}), 6), silent(rank({}), 5)};
  ranks[2].trouble = "its process (12) has ended";
  EXPECT_EQ(diagnose(0, ranks, {}, ranks_of).text,
            "ranks 1 and 2 are lost: no heartbeat for 5 s; rank 2: its process (12) has ended");
}

TEST(Diagnosis, all_ranks_of_a_lost_host_are_named) {
  const std::vector<Observation> ranks{rank({}), silent(rank({}), 6), silent(rank({}), 5), silent({}, 7)};
  EXPECT_EQ(diagnose(0, ranks, {}, ranks_of).text, "ranks 1, 2 and 3 are lost: no heartbeat for 5 s");
  EXPECT_EQ(diagnose(0, ranks, {}, ranks_of).lost, (std::vector<int>{1, 2, 3}));
}

TEST(Diagnosis, a_rank_that_computes_while_its_group_waits_hangs) {
  const std::vector<Observation> ranks{rank({{"expert/0", 7}}, expert_7), rank({{"expert/0", 6}}), rank({})};
  const std::string text = diagnose(0, ranks, timed_out(expert_7, 1), ranks_of).text;
  EXPECT_THAT(text, HasSubstr("rank 1 hangs: it lives, but for 300 s"));
  EXPECT_THAT(text, HasSubstr("it was last in no collective, after all_to_all #6 of the expert axis"));
}

TEST(Diagnosis, the_end_of_a_chain_of_waiting_is_to_blame) {
  const std::vector<Observation> ranks{rank({{"expert/0", 7}}, expert_7),
                                       rank({{"expert/0", 6}, {"shard/1", 3}}, shard_3), rank({{"shard/1", 2}})};
  const std::string text = diagnose(0, ranks, timed_out(expert_7, 1), ranks_of).text;
  EXPECT_THAT(text, HasSubstr("rank 2 hangs"));
  EXPECT_THAT(text, Not(HasSubstr("rank 1 hangs")));
  EXPECT_EQ(diagnose(0, ranks, timed_out(expert_7, 1), ranks_of).lost, std::vector<int>{2});
}

TEST(Diagnosis, ranks_that_wait_for_each_other_end_the_search) {
  const std::vector<Observation> ranks{rank({{"expert/0", 7}}, expert_7),
                                       rank({{"expert/0", 6}, {"shard/1", 3}}, shard_3),
                                       rank({{"shard/1", 2}}, Operation{"shard/1", "all_gather", 2})};
  EXPECT_THAT(diagnose(0, ranks, timed_out(expert_7, 1), ranks_of).text, HasSubstr("rank 1 lives"));
}

TEST(Diagnosis, everyone_in_the_same_collective_blames_the_network) {
  const std::vector<Observation> ranks{rank({{"expert/0", 7}}, expert_7), rank({{"expert/0", 7}}, expert_7), rank({})};
  EXPECT_THAT(diagnose(0, ranks, timed_out(expert_7, 1), ranks_of).text,
              HasSubstr("rank 1 lives and is in the same collective, but its data did not arrive"));
  EXPECT_EQ(diagnose(0, ranks, {expert_7, 1, false, 2, "Connection reset"}, ranks_of).text,
            "the connection to rank 1 broke, although that rank lives: Connection reset");
}

TEST(Diagnosis, a_rank_that_finished_early_is_named) {
  std::vector<Observation> ranks{rank({{"expert/0", 7}}, expert_7), rank({{"expert/0", 6}}), rank({})};
  ranks[1].report->state = RankState::finished;
  EXPECT_THAT(diagnose(0, ranks, timed_out(expert_7, 1), ranks_of).text,
              HasSubstr("rank 1 has finished, but others wait for it"));
  EXPECT_THAT(diagnose(0, ranks, {expert_7, 1, false, 2, "closed"}, ranks_of).text, HasSubstr("rank 1 has finished"));
}

TEST(Diagnosis, the_lowest_rank_that_is_left_speaks) {
  EXPECT_EQ(PeerLostError("rank 2 is lost", {2}).speaker(), 0);
  EXPECT_EQ(PeerLostError("ranks 0, 1 and 3 are lost", {0, 1, 3}).speaker(), 2);
}

TEST(RankReport, is_read_as_written) {
  RankReport report;
  report.beat = 1234567890123;
  report.state = RankState::finished;
  report.waits_in = shard_3;
  report.last = expert_7;
  report.numbers = {{"expert/0", 7}, {"shard/1", 3}};
  report.process = 4711;
  report.host = "boot pid:[1] net:[2]";
  const RankReport read = RankReport::decode(report.encode()).value();
  EXPECT_EQ(read.beat, report.beat);
  EXPECT_EQ(read.state, RankState::finished);
  EXPECT_EQ(read.waits_in->text(), "all_gather #3 of the shard axis");
  EXPECT_EQ(read.last->text(), "all_to_all #7 of the expert axis");
  EXPECT_EQ(read.numbers, report.numbers);
  EXPECT_EQ(read.process, 4711);
  EXPECT_EQ(read.host, "boot pid:[1] net:[2]");
  EXPECT_FALSE(RankReport::decode(RankReport{.beat = 1}.encode())->last.has_value());
  for (const char* text :
       {"", "beat many", "beat 0", "beat 1\nstate 7", "beat 1\nstate x", "beat 1\nlast expert/0 all_to_all",
        "beat 1\nnumber expert/0 -", "beat 1\nprocess me here", "beat 1\n\x1b]0;title\a", "\x80\x03."})
    EXPECT_FALSE(RankReport::decode(text).has_value()) << text;
}

}  // namespace
}  // namespace conclave
