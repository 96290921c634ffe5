// Ranks started by torchrun. Each of them takes torchrun's start-up of some seconds, so there are few.
#include "comm/launch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <thread>

#include "base/log.h"
#include "dist/world.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

std::string this_program() {
  return std::filesystem::read_symlink("/proc/self/exe").string();
}

LaunchOptions shell(int ranks, const std::string& script) {
  return {ranks, {"/bin/sh", "-c", script}, ""};
}

// Not a test by itself: what each rank of the next test runs.
TEST(RankProgram, DISABLED_meets_the_others) {
  const Process process = process_from_environment();
  World world(process, {});
  const auto comm = world.communicator({{0, 1}, world.rank()}, "world");
  const at::Tensor sum = at::full({1}, world.rank() + 1.0);
  comm->all_reduce(sum).wait();
  world.finish();
  std::_Exit(process.launcher == Launcher::torchrun && process.is_one_host() && sum.item<double>() == 3.0
                 ? exit_success
                 : exit_failure);
}

TEST(Launch, ranks_meet_under_torchrun) {
  EXPECT_EQ(
      launch_local_ranks({2, {this_program(), "--gtest_also_run_disabled_tests", "--gtest_filter=RankProgram.*"}, ""}),
      0);
}

// The other rank is ended by torchrun, with SIGTERM: not a failure of its own.
TEST(Launch, returns_the_code_of_the_rank_that_failed_first) {
  EXPECT_EQ(launch_local_ranks(shell(2, "if [ $RANK = 1 ]; then exit 42; fi; sleep 60")), 42);
}

TEST(Launch, names_a_killed_rank) {
  set_up_logging(0, 1);  // to standard error
  ::testing::internal::CaptureStderr();
  const int code = launch_local_ranks(shell(2, "if [ $RANK = 1 ]; then kill -9 $$; fi; sleep 60"));
  std::fflush(nullptr);
  EXPECT_EQ(code, exit_peer_lost);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("rank 1 is lost: signal 9 (Killed) ended it."));
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << "torchrun's report must not bury it: " << said;
}

class LaunchSignal : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(, LaunchSignal, ::testing::Values(SIGTERM, SIGUSR1));

// Oracle: each rank leaves a file when the signal reaches it, and ends with a code of its own.
TEST_P(LaunchSignal, is_passed_on_to_ranks_that_end_by_themselves) {
  const auto folder = std::filesystem::temp_directory_path() / ("conclave_launch_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  // Like a rank of a run: what comes after the first signal does nothing more.
  const std::string script = "trap 'trap \"\" TERM USR1; touch " + folder.string() +
                             "/ended.$RANK; sleep 1; exit 4' TERM USR1; touch " + folder.string() +
                             "/started.$RANK; while :; do sleep 0.1; done";
  const pid_t launcher = fork();  // a process of its own, which may be signalled
  if (launcher == 0) std::_Exit(launch_local_ranks(shell(2, script)));
  for (int tries = 0; tries < 600 && !(exists(folder / "started.0") && exists(folder / "started.1")); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  kill(launcher, GetParam());
  int status = 0;
  waitpid(launcher, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 4);
  EXPECT_TRUE(exists(folder / "ended.0"));
  EXPECT_TRUE(exists(folder / "ended.1"));
  std::filesystem::remove_all(folder);
}

TEST(Launch, says_that_a_signal_it_passed_on_ended_the_ranks) {
  const pid_t launcher = fork();
  if (launcher == 0)
    std::_Exit(launch_local_ranks(shell(2, "kill -TERM " + std::to_string(getpid()) + "; exec sleep 60")));
  int status = 0;
  waitpid(launcher, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 128 + SIGTERM);
}

TEST(Launch, refuses_a_python_that_is_not_there) {
  LaunchOptions options = shell(2, "true");
  options.python = "/no/such/python";
  EXPECT_THROW(launch_local_ranks(options), UserError);
}

}  // namespace
}  // namespace conclave
