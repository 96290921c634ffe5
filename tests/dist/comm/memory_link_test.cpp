// The link itself between forked ranks, with names of its own in the job's store. What collectives make of it, and what
// becomes of them when a rank is lost, is tested by collectives_test.cpp and lost_ranks_test.cpp.
#include "comm/memory_link.h"

#include <sys/uio.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "comm/rendezvous.h"
#include "dist/world.h"

namespace conclave {
namespace {

using testing::run_ranks;
using Clock = std::chrono::steady_clock;
using enum MemoryLink::Outcome;

const std::atomic<bool> never = false;

bool system_lets_read() {
  int from = 7, to = 0;
  const iovec own{&to, sizeof to}, other{&from, sizeof from};
  return ::process_vm_readv(::getpid(), &own, 1, &other, 1, 0) == sizeof to;
}

class MemoryLinks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!system_lets_read()) GTEST_SKIP() << "no process may read another one's memory here";
  }
};

std::unique_ptr<MemoryLink> open_link(World& world) {
  Process process = world.process();
  process.launcher_serves_store = true;  // it is served already
  auto store = c10::make_intrusive<c10d::PrefixStore>("test", connect_store(process, std::chrono::seconds(60)));
  auto link = MemoryLink::open(world.process(), *store);
  std::vector<int> everyone(static_cast<size_t>(world.size()));
  std::iota(everyone.begin(), everyone.end(), 0);
  link->meet(everyone, *store);
  for (int rank = 0; rank < world.size(); ++rank) EXPECT_EQ(link->reaches(rank), rank != world.rank()) << rank;
  return link;
}

MemoryLink::Outcome wait(MemoryLink& link, const std::shared_ptr<MemoryLink::Transfer>& transfer,
                         std::chrono::milliseconds most = std::chrono::seconds(50)) {
  return link.wait(*transfer, Clock::now() + most, never);
}

// Byte i of message `number` from `rank`.
std::vector<char> message(int rank, uint64_t number, size_t bytes) {
  std::vector<char> data(bytes);
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<char>(i * 31 + number * 7 + static_cast<size_t>(rank));
  return data;
}

// More messages than there are notes, of one byte to megabytes, between all pairs at once; receives are posted, and
// everything is waited for, in another order on each rank.
TEST_F(MemoryLinks, carry_every_message_in_whatever_order_it_is_waited_for) {
  run_ranks(3, [](World& world) {
    const auto link = open_link(world);
    constexpr uint64_t count = 3 * Mailbox::notes_of_sender;
    const auto size_of = [](uint64_t number) { return number % 50 == 0 ? 3'000'001 : 1 + number * number % 9001; };
    const auto channel_of = [](uint64_t number) { return number % 2 == 0 ? "shard/0" : "expert/0"; };
    std::vector<std::vector<char>> sent, received;
    std::vector<std::shared_ptr<MemoryLink::Transfer>> transfers;
    std::vector<std::pair<int, uint64_t>> names;
    for (int peer = 0; peer < world.size(); ++peer)
      for (uint64_t number = 0; peer != world.rank() && number < count; ++number) names.emplace_back(peer, number);
    for (const auto& [peer, number] : names) {
      sent.push_back(message(world.rank(), number, size_of(number)));
      transfers.push_back(
          link->send(peer, channel_of(number), number, sent.back().data(), static_cast<int64_t>(sent.back().size())));
    }
    const unsigned seed = 5 + static_cast<unsigned>(world.rank());
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    std::shuffle(names.begin(), names.end(), random);
    for (const auto& [peer, number] : names) {
      received.emplace_back(size_of(number));
      transfers.push_back(link->receive(peer, channel_of(number), number, received.back().data(),
                                        static_cast<int64_t>(received.back().size())));
    }
    std::shuffle(transfers.begin(), transfers.end(), random);
    for (const auto& transfer : transfers) EXPECT_EQ(wait(*link, transfer), done);
    for (size_t i = 0; i < names.size(); ++i)
      EXPECT_TRUE(received[i] == message(names[i].first, names[i].second, received[i].size())) << names[i].second;
  });
}

// Rank 1 waits for nothing: its mover takes what comes.
TEST_F(MemoryLinks, carry_a_message_to_a_rank_that_computes) {
  run_ranks(2, [](World& world) {
    const auto link = open_link(world);
    std::vector<char> data = message(0, 1, 100'000);
    if (world.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the receive is posted first
      EXPECT_EQ(wait(*link, link->send(1, "expert/0", 1, data.data(), 100'000), std::chrono::seconds(5)), done);
      char over = 0;
      EXPECT_EQ(wait(*link, link->receive(1, "expert/0", 2, &over, 1)), done);
    } else {
      std::vector<char> into(100'000);
      const auto receive = link->receive(0, "expert/0", 1, into.data(), 100'000);
      std::this_thread::sleep_for(std::chrono::seconds(8));
      EXPECT_EQ(wait(*link, receive), done);
      EXPECT_TRUE(into == data);
      EXPECT_EQ(wait(*link, link->send(0, "expert/0", 2, into.data(), 1)), done);
    }
  });
}

TEST_F(MemoryLinks, leave_withdrawn_data_alone) {
  run_ranks(2, [](World& world) {
    const auto link = open_link(world);
    std::vector<char> data(64, 'x');
    if (world.rank() == 0) {
      const auto receive = link->receive(1, "expert/0", 1, data.data(), 64);
      link->withdraw(receive);
      const auto late = link->receive(1, "expert/0", 2, data.data(), 1);
      EXPECT_EQ(wait(*link, late), done);
      EXPECT_EQ(data, std::vector<char>(64, 'x'));
    } else {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      const auto unread = link->send(0, "expert/0", 1, message(1, 1, 64).data(), 64);
      EXPECT_EQ(wait(*link, unread, std::chrono::milliseconds(300)), timed_out);
      link->withdraw(unread);
      EXPECT_EQ(wait(*link, link->send(0, "expert/0", 2, data.data(), 1)), done);
    }
  });
}

TEST_F(MemoryLinks, tell_of_a_message_of_another_size_and_of_a_rank_that_ended) {
  const auto outcomes = testing::start_ranks(2, [](World& world) {
    const auto link = open_link(world);
    char data[8] = {};
    if (world.rank() == 1) {
      EXPECT_EQ(wait(*link, link->send(0, "expert/0", 1, data, 8)), done);
      ::_exit(7);
    }
    EXPECT_EQ(wait(*link, link->receive(1, "expert/0", 1, data, 7)), failed);
    const auto start = Clock::now();
    EXPECT_EQ(wait(*link, link->receive(1, "expert/0", 2, data, 8)), peer_ended);
    EXPECT_LT(Clock::now() - start, std::chrono::seconds(20));
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  });
  EXPECT_EQ(outcomes[0].exit_code, 0) << outcomes[0].text;
  EXPECT_EQ(outcomes[1].exit_code, 7) << outcomes[1].text;
}

}  // namespace
}  // namespace conclave
