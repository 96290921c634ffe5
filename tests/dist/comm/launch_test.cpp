// Ranks started on this machine, and how the launcher passes on signals and ends.
#include "comm/launch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <csignal>
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
  return {ranks, {"/bin/sh", "-c", script}};
}

// Not a test by itself: what each rank of the next test runs.
TEST(RankProgram, DISABLED_meets_the_others) {
  const Process process = process_from_environment();
  at::Tensor sum;
  {
    World world(process, {});
    const auto comm = world.communicator({{0, 1}, world.rank()}, "world");
    sum = at::full({1}, world.rank() + 1.0);
    comm->all_reduce(sum).wait();
    world.finish();
  }  // who serves the store stays until the others need it no more
  std::_Exit(process.launcher == Launcher::conclave && process.is_one_host() && sum.item<double>() == 3.0
                 ? exit_success
                 : exit_failure);
}

TEST(Launch, ranks_meet) {
  EXPECT_EQ(
      launch_local_ranks({2, {this_program(), "--gtest_also_run_disabled_tests", "--gtest_filter=RankProgram.*"}}), 0);
}

// The other rank is ended by the launcher, with SIGTERM: not a failure of its own.
TEST(Launch, returns_the_code_of_the_rank_that_failed_first) {
  EXPECT_EQ(launch_local_ranks(shell(2, "if [ $RANK = 1 ]; then exit 42; fi; sleep 60")), 42);
}

TEST(Launch, names_a_killed_rank) {
  spdlog::drop_all();    // of an earlier test
  set_up_logging(0, 1);  // to standard error
  ::testing::internal::CaptureStderr();
  const int code = launch_local_ranks(shell(2, "if [ $RANK = 1 ]; then kill -9 $$; fi; sleep 60"));
  std::fflush(nullptr);
  EXPECT_EQ(code, exit_peer_lost);
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("rank 1 is lost: signal 9 (Killed) ended it"));
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

class LaunchSignal : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(, LaunchSignal, ::testing::Values(SIGTERM, SIGINT, SIGHUP, SIGUSR1));

// Oracle: each rank leaves a file when the signal reaches it, and ends with a code of its own.
TEST_P(LaunchSignal, is_passed_on_to_ranks_that_end_by_themselves) {
  const auto folder = std::filesystem::temp_directory_path() / ("conclave_launch_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  // Like a rank of a run: what comes after the first signal does nothing more.
  const std::string script = "trap 'trap \"\" TERM INT HUP USR1; touch " + folder.string() +
                             "/ended.$RANK; sleep 1; exit 4' TERM INT HUP USR1; touch " + folder.string() +
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

// Rank 0 says that it has lost rank 1 before rank 1, which knows why, has ended.
TEST(Launch, a_reason_counts_before_the_loss_that_follows_from_it) {
  EXPECT_EQ(launch_local_ranks(shell(2, "if [ $RANK = 1 ]; then sleep 1; exit 1; fi; exit 3")), 1);
  EXPECT_EQ(launch_local_ranks(shell(3, "exit 3")), 3);
}

// One that heeds no request is killed; here it is not even running.
TEST(Launch, a_stopped_rank_does_not_outlive_a_failed_one) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(launch_local_ranks(shell(2, "if [ $RANK = 1 ]; then exit 7; fi; kill -STOP $$; exit 9")), 7);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30));
}

TEST(Launch, ranks_see_nothing_of_another_launcher) {
  setenv("MASTER_PORT", "29500", 1);
  setenv("TORCHELASTIC_USE_AGENT_STORE", "True", 1);
  EXPECT_EQ(launch_local_ranks(shell(2,
                                     "[ -z \"$MASTER_PORT$TORCHELASTIC_USE_AGENT_STORE\" ] && [ $WORLD_SIZE = 2 ] && "
                                     "[ $LOCAL_RANK = $RANK ] && [ -n \"$CONCLAVE_MEETING\" ]")),
            0);
  unsetenv("MASTER_PORT");
  unsetenv("TORCHELASTIC_USE_AGENT_STORE");
}

// Oracle: the ranks' own word, in files. A shell that is killed with SIGKILL can tell nobody.
TEST(Launch, ranks_do_not_outlive_a_killed_launcher) {
  const auto folder = std::filesystem::temp_directory_path() / ("conclave_launch_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  const std::string script = "trap 'touch " + folder.string() + "/ended.$RANK; exit 4' TERM; touch " + folder.string() +
                             "/started.$RANK; while :; do sleep 0.1; done";
  const pid_t launcher = fork();
  if (launcher == 0) std::_Exit(launch_local_ranks(shell(2, script)));
  const auto wait_for = [&](const char* what) {
    for (int tries = 0;
         tries < 600 && !(exists(folder / (std::string(what) + ".0")) && exists(folder / (std::string(what) + ".1")));
         ++tries)
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    return exists(folder / (std::string(what) + ".0")) && exists(folder / (std::string(what) + ".1"));
  };
  EXPECT_TRUE(wait_for("started"));
  kill(launcher, SIGKILL);
  waitpid(launcher, nullptr, 0);
  EXPECT_TRUE(wait_for("ended"));
  std::filesystem::remove_all(folder);
}

// As under nohup.
TEST(Launch, an_ignored_hang_up_stays_ignored) {
  const pid_t launcher = fork();
  if (launcher == 0) {
    std::signal(SIGHUP, SIG_IGN);
    std::_Exit(launch_local_ranks(shell(2, "kill -HUP $PPID; kill -HUP $$; sleep 1; exit 0")));
  }
  int status = 0;
  waitpid(launcher, &status, 0);
  EXPECT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Launch, a_lost_reader_of_standard_error_changes_no_exit_code) {
  const pid_t launcher = fork();
  if (launcher == 0) {
    int ends[2];
    if (pipe(ends) != 0) std::_Exit(99);
    close(ends[0]);
    dup2(ends[1], STDERR_FILENO);
    spdlog::drop_all();  // of an earlier test
    set_up_logging(0, 1);
    std::_Exit(launch_local_ranks(shell(2, "if [ $RANK = 1 ]; then kill -9 $$; fi; sleep 60")));
  }
  int status = 0;
  waitpid(launcher, &status, 0);
  EXPECT_TRUE(WIFEXITED(status)) << status;
  EXPECT_EQ(WEXITSTATUS(status), exit_peer_lost);
}

}  // namespace
}  // namespace conclave
