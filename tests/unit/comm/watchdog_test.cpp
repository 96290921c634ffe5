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

  // Its words; none if there is none within ten seconds.
  std::string wait_for_verdict() {
    for (int i = 0; i < 1000; ++i) {
      std::this_thread::sleep_for(10ms);
      try {
        watchdog_.call(*calls_, "all_gather");
      } catch (const PeerLostError& error) {
        return error.what();
      }
    }
    return "";
  }
};

TEST_F(WatchdogTest, a_supervised_collective_that_failed_ends_the_job) {
  const Operation failed = watchdog_.call(*calls_, "all_to_all");
  const auto handle = watchdog_.supervise([&] { return Failure{failed, -1, false, 0.1, "the link is down"}; });
  const std::string text = wait_for_verdict();
  EXPECT_THAT(text, testing::HasSubstr("all_to_all #1 of the expert axis"));
  EXPECT_THAT(text, testing::HasSubstr("the link is down"));
}

TEST_F(WatchdogTest, a_question_that_throws_ends_the_job) {
  const auto handle = watchdog_.supervise(
      []() -> std::optional<Failure> { throw std::runtime_error("the device does not answer any more"); });
  EXPECT_THAT(wait_for_verdict(), testing::HasSubstr("the device does not answer any more"));
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
