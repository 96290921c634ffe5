// Ranks that die, freeze, hang or give up, and what the others then say. Oracle: the test knows whom it took away; the
// others must name that rank and no other one, and end by themselves well within the time-out of a collective.
#include <ATen/ATen.h>

#include <atomic>

#include "dist/world.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::RankOutcome;
using testing::RunOptions;
using testing::start_ranks;

AxisGroup everyone(const World& world) {
  AxisGroup group;
  for (int rank = 0; rank < world.size(); ++rank) group.ranks.push_back(rank);
  group.index = world.rank();
  return group;
}

// Silence is judged within seconds here; a loaded machine must still let a thread run once in that time.
RunOptions quick(std::chrono::seconds timeout) {
  RunOptions options;
  options.world.timeout = timeout;
  options.world.watchdog = {std::chrono::milliseconds(100), 40, 30, std::chrono::seconds(2)};
  options.limit = std::chrono::seconds(90);
  return options;
}

// Steps of a job with large and small collectives; `fault(step)` strikes on the culprit.
void work(World& world, int culprit, const std::function<void()>& fault) {
  const auto shard = world.communicator(everyone(world), "shard");
  const at::Tensor input = at::ones({200'000}), output = at::empty({200'000 * world.size()});
  for (int step = 0; step < 100'000; ++step) {
    if (step == 20 && world.rank() == culprit) fault();
    shard->all_gather(output, input).wait();
    shard->all_reduce(output.narrow(0, 0, 100)).wait();
  }
}

void expect_named(const std::vector<RankOutcome>& outcomes, int culprit, const std::string& words) {
  for (int rank = 0; rank < static_cast<int>(outcomes.size()); ++rank) {
    if (rank == culprit) continue;
    EXPECT_EQ(outcomes[rank].exit_code, exit_peer_lost)
        << "rank " << rank << ", signal " << outcomes[rank].signal << ": " << outcomes[rank].text;
    EXPECT_THAT(outcomes[rank].text, HasSubstr(words));
    EXPECT_THAT(outcomes[rank].text, HasSubstr("this rank (" + std::to_string(rank) + ")"));
  }
}

TEST(LostRanks, a_killed_rank_is_named) {
  const auto outcomes = start_ranks(
      3, [](World& world) { work(world, 1, [] { raise(SIGKILL); }); }, quick(std::chrono::seconds(60)));
  EXPECT_EQ(outcomes[1].signal, SIGKILL);
  expect_named(outcomes, 1, "rank 1 is lost: no heartbeat");
}

TEST(LostRanks, the_rank_that_serves_the_store_is_named) {
  const auto outcomes = start_ranks(
      3, [](World& world) { work(world, 0, [] { raise(SIGKILL); }); }, quick(std::chrono::seconds(60)));
  EXPECT_EQ(outcomes[0].signal, SIGKILL);
  expect_named(outcomes, 0, "rank 0 is lost: the store on this host");
}

TEST(LostRanks, a_frozen_rank_is_named) {
  const auto outcomes = start_ranks(
      3, [](World& world) { work(world, 2, [] { raise(SIGSTOP); }); }, quick(std::chrono::seconds(60)));
  expect_named(outcomes, 2, "rank 2 is lost: no heartbeat");
  for (int rank : {0, 1}) {
    EXPECT_THAT(outcomes[rank].text, HasSubstr(") is stopped, as by SIGSTOP: SIGCONT lets it go on; "));
    // All calls before the fault lie within its first beat: what it sent tells of them, its report does not.
    EXPECT_THAT(outcomes[rank].text, HasSubstr(" of the shard axis; this rank"));
  }
}

TEST(LostRanks, a_frozen_store_is_named) {
  const auto outcomes = start_ranks(
      2, [](World& world) { work(world, 0, [] { raise(SIGSTOP); }); }, quick(std::chrono::seconds(60)));
  expect_named(outcomes, 0, "rank 0 is lost: the store on this host");
}

// Rank 1 waits for rank 2, rank 0 for rank 1: the one to blame is rank 2, which lives but does not come.
TEST(LostRanks, a_hanging_rank_is_found_behind_those_that_wait_for_it) {
  const auto outcomes = start_ranks(
      3,
      [](World& world) {
        const int me = world.rank();
        std::unique_ptr<Communicator> front, back;
        if (me <= 1) front = world.communicator({{0, 1}, me}, "expert");
        if (me >= 1) back = world.communicator({{1, 2}, me - 1}, "shard");
        const at::Tensor tensor = at::ones({10});
        if (back) back->all_reduce(tensor).wait();
        if (me == 2) std::this_thread::sleep_for(std::chrono::seconds(60));
        if (back) back->all_reduce(tensor).wait();
        if (front) front->all_reduce(tensor).wait();
      },
      quick(std::chrono::seconds(3)));
  for (int rank : {0, 1}) {
    EXPECT_EQ(outcomes[rank].exit_code, exit_peer_lost) << outcomes[rank].text;
    EXPECT_THAT(outcomes[rank].text, HasSubstr("rank 2 hangs: it lives, but for 3 s"));
    EXPECT_THAT(outcomes[rank].text, HasSubstr("after all_reduce #1 of the shard axis"));
    EXPECT_THAT(outcomes[rank].text, Not(HasSubstr("rank 1 hangs")));
  }
  EXPECT_EQ(outcomes[2].exit_code, exit_peer_lost) << "it does not leave by itself and is ended: " << outcomes[2].text;
}

TEST(LostRanks, a_rank_that_stops_tells_why) {
  const auto outcomes = start_ranks(
      3, [](World& world) { work(world, 1, [] { throw std::runtime_error("the disk is full"); }); },
      quick(std::chrono::seconds(60)));
  EXPECT_EQ(outcomes[1].exit_code, exit_failure);
  expect_named(outcomes, 1, "rank 1 stopped: the disk is full");
}

// Nobody waits for the killed rank; the others compute.
TEST(LostRanks, a_killed_rank_is_noticed_without_a_collective) {
  const auto outcomes = start_ranks(
      3,
      [](World& world) {
        if (world.rank() == 1) raise(SIGKILL);
        std::this_thread::sleep_for(std::chrono::seconds(60));
      },
      quick(std::chrono::seconds(60)));
  for (int rank : {0, 2}) EXPECT_EQ(outcomes[rank].exit_code, exit_peer_lost) << outcomes[rank].text;
}

// The same, at the very end: a rank that waits in finish() must not wait for the dead.
TEST(LostRanks, a_rank_killed_before_the_end_is_named) {
  const auto outcomes = start_ranks(
      2,
      [](World& world) {
        if (world.rank() == 1) raise(SIGKILL);
      },
      quick(std::chrono::seconds(60)));
  EXPECT_EQ(outcomes[0].exit_code, exit_peer_lost);
  EXPECT_THAT(outcomes[0].text, HasSubstr("rank 1 is lost: no heartbeat"));
}

TEST(LostRanks, slow_computation_and_early_finish_are_no_failure) {
  testing::run_ranks(
      3,
      [](World& world) {
        const auto comm = world.communicator(everyone(world), "world");
        if (world.rank() == 1)
          std::this_thread::sleep_for(std::chrono::seconds(5));  // longer than a silent rank is given
        comm->barrier();
        if (world.rank() == 2)
          std::this_thread::sleep_for(std::chrono::seconds(5));  // the others are in finish() meanwhile
      },
      quick(std::chrono::seconds(60)));
}

// A world of three of which one does not come. The one that serves the store is the first to give up.
TEST(LostRanks, a_rank_that_never_comes_is_named_by_all) {
  const std::string meeting = testing::detail::new_meeting();
  const auto outcomes = start_ranks(
      2,
      [&](World& world) {
        Process process;
        process.rank = world.rank();
        process.world_size = process.local_world_size = 3;
        process.meeting = meeting;
        WorldOptions options = quick(std::chrono::seconds(0)).world;
        options.timeout = std::chrono::seconds(world.rank() == 0 ? 2 : 30);
        World incomplete(process, options);
      },
      quick(std::chrono::seconds(60)));
  for (int rank : {0, 1}) {
    EXPECT_EQ(outcomes[rank].exit_code, exit_peer_lost);
    EXPECT_THAT(outcomes[rank].text,
                HasSubstr("rank 2 did not start within 2 s; this is rank " + std::to_string(rank) + " of 3"));
  }
}

// Gloo writes to the sockets of ranks that may be gone.
TEST(LostRanks, a_broken_pipe_does_not_end_a_rank) {
  const auto outcomes = start_ranks(
      2, [](World& /*world*/) { raise(SIGPIPE); }, quick(std::chrono::seconds(60)));
  for (const RankOutcome& outcome : outcomes) EXPECT_EQ(outcome.exit_code, exit_success) << "signal " << outcome.signal;
}

}  // namespace
}  // namespace conclave
