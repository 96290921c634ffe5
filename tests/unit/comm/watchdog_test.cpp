// What the watchdog does with transports whose waits do not block (NCCL's), in a world of one. Ranks that are lost:
// tests/dist/comm/lost_ranks_test.cpp.
#include "comm/watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "base/error.h"

namespace conclave {
namespace {

using namespace std::chrono_literals;

class WatchdogTest : public testing::Test {
 protected:
  Watchdog watchdog_{c10::make_intrusive<c10d::HashStore>(),
                     "the test's store",
                     /*serves_store=*/true,
                     0,
                     1,
                     WatchdogOptions{.beat = 20ms, .lost_after_beats = 100, .lost_after_failure_beats = 5},
                     10s};
  std::shared_ptr<Watchdog::Calls> calls_ = watchdog_.watch("expert", {0});
};

TEST_F(WatchdogTest, a_supervised_collective_that_failed_ends_the_job) {
  const Operation failed = watchdog_.call(*calls_, "all_to_all");
  const auto handle = watchdog_.supervise([&] { return Failure{failed, -1, false, 0.1, "the link is down"}; });
  std::string text;
  for (int i = 0; i < 1000 && text.empty(); ++i) {
    std::this_thread::sleep_for(10ms);
    try {
      watchdog_.call(*calls_, "all_gather");
    } catch (const PeerLostError& error) {
      text = error.what();
    }
  }
  EXPECT_THAT(text, testing::HasSubstr("all_to_all #1 of the expert axis"));
  EXPECT_THAT(text, testing::HasSubstr("the link is down"));
}

// A question to a device may not come back as long as another thread waits for it.
TEST_F(WatchdogTest, one_that_hangs_stops_neither_calls_nor_the_end) {
  std::promise<void> device, asked;
  const std::shared_future<void> answer = device.get_future();
  auto handle = watchdog_.supervise([&, is_first = true]() mutable -> std::optional<Failure> {
    if (std::exchange(is_first, false)) asked.set_value();
    answer.wait();
    return {};
  });
  asked.get_future().wait();
  EXPECT_EQ(watchdog_.call(*calls_, "all_gather").number, 1u);
  auto finished = std::async(std::launch::async, [&] { watchdog_.finish(); });
  const bool ended = finished.wait_for(5s) == std::future_status::ready;
  device.set_value();
  EXPECT_TRUE(ended);
}

}  // namespace
}  // namespace conclave
