// Tests that need several ranks: run_ranks() forks one process per rank, each of which runs the body with a World, and
// the test fails with their texts if one of them fails. Forking asks for a parent without threads, so ATen in the test
// program itself runs with one; the ranks have their share of the cores.
#pragma once

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/world.h"

namespace conclave::testing {

inline const bool test_program_has_one_thread = (at::set_num_threads(1), true);

struct RankOutcome {
  int exit_code =
      -1;  // exit_success, exit_failure (a failed expectation or an exception), exit_peer_lost; -1: a signal ended it
  int signal = 0;
  std::string text;  // failed expectations, or the exception's words
};

struct RunOptions {
  WorldOptions world{at::kCPU, std::chrono::seconds(60), {}};
  std::chrono::seconds limit{120};  // then the ranks that are left are killed
};

using RankBody = std::function<void(World&)>;

namespace detail {

// A name that no other world of this machine meets under.
inline std::string new_meeting() {
  static int count = 0;
  return "test/" + std::to_string(::getpid()) + "/" + std::to_string(++count);
}

// Writes what fails to the parent instead of the terminal.
class TellParent : public ::testing::EmptyTestEventListener {
 public:
  explicit TellParent(int pipe) : pipe_(pipe) {}
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (result.failed())
      tell(std::string(result.file_name() ? result.file_name() : "") + ":" + std::to_string(result.line_number()) +
           ": " + result.message());
  }
  void tell(const std::string& text) {
    const std::string line = text + "\n";
    for (size_t done = 0; done < line.size();) {
      const ssize_t count = ::write(pipe_, line.data() + done, line.size() - done);
      if (count <= 0) return;
      done += count;
    }
  }

 private:
  int pipe_;
};

[[noreturn]] inline void be_rank(Process process, const RankBody& body, const WorldOptions& options, int pipe) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  auto* parent = new TellParent(pipe);
  listeners.Append(parent);
  int code = exit_success;
  try {
    World world(process, options);
    try {
      body(world);
      world.finish();
    } catch (const std::exception& error) {
      world.stop(error.what());
      throw;
    }
  } catch (const PeerLostError& error) {
    parent->tell(error.what());
    code = exit_peer_lost;
  } catch (const std::exception& error) {
    parent->tell(error.what());
    code = exit_failure;
  }
  if (code == exit_success && ::testing::Test::HasFailure()) code = exit_failure;
  std::fflush(nullptr);
  std::_Exit(code);
}

inline bool is_frozen(pid_t child) {
  siginfo_t state{};
  return ::waitid(P_PID, child, &state, WSTOPPED | WEXITED | WNOHANG | WNOWAIT) == 0 && state.si_pid == child &&
         state.si_code == CLD_STOPPED;
}

// Also returns when the only ones left are frozen.
inline void read_until_all_end(const std::vector<pid_t>& children, std::vector<int>& pipes,
                               std::vector<RankOutcome>& outcomes, std::chrono::seconds limit) {
  const auto end = std::chrono::steady_clock::now() + limit;
  for (size_t open = pipes.size(); open > 0;) {
    std::vector<pollfd> polled;
    for (int pipe : pipes) polled.push_back({pipe, POLLIN, 0});  // a closed one is -1, which poll() skips
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    if (left <= 0) return;
    if (::poll(polled.data(), polled.size(), static_cast<int>(std::min<int64_t>(left, 200))) == 0) {
      bool only_frozen = true;
      for (size_t rank = 0; rank < pipes.size(); ++rank)
        only_frozen = only_frozen && (pipes[rank] < 0 || is_frozen(children[rank]));
      if (only_frozen) return;
    }
    for (size_t rank = 0; rank < pipes.size(); ++rank) {
      if (polled[rank].revents == 0) continue;
      char buffer[4096];
      const ssize_t count = ::read(pipes[rank], buffer, sizeof buffer);
      if (count > 0) {
        outcomes[rank].text.append(buffer, count);
      } else {
        ::close(pipes[rank]);
        pipes[rank] = -1;
        --open;
      }
    }
  }
}

}  // namespace detail

// Runs `body` on `ranks` ranks and returns how each ended. Ranks that do not end within the limit are killed, as are
// frozen ones once the others have ended.
inline std::vector<RankOutcome> start_ranks(int ranks, const RankBody& body, const RunOptions& options = {}) {
  const auto threads =
      std::distance(std::filesystem::directory_iterator("/proc/self/task"), std::filesystem::directory_iterator());
  check_invariant(threads == 1, "the test program has {} threads; ranks can be forked from a single one only", threads);
  Process process;
  process.world_size = process.local_world_size = ranks;
  process.meeting = detail::new_meeting();
  std::vector<int> pipes;
  std::vector<pid_t> children;
  std::fflush(nullptr);  // or each rank would write again what is in the buffers
  for (int rank = 0; rank < ranks; ++rank) {
    int ends[2];
    if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
    const pid_t child = ::fork();
    if (child == 0) {
      for (int pipe : pipes) ::close(pipe);
      ::close(ends[0]);
      process.rank = process.local_rank = rank;
      detail::be_rank(process, body, options.world, ends[1]);
    }
    ::close(ends[1]);
    pipes.push_back(ends[0]);
    children.push_back(child);
  }
  std::vector<RankOutcome> outcomes(ranks);
  detail::read_until_all_end(children, pipes, outcomes, options.limit);
  for (int rank = 0; rank < ranks; ++rank) {
    if (pipes[rank] >= 0) {
      ::kill(children[rank], SIGKILL);
      ::close(pipes[rank]);
      outcomes[rank].text += "did not end and was killed by the test\n";
    }
    int status = 0;
    ::waitpid(children[rank], &status, 0);
    outcomes[rank].exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    outcomes[rank].signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
  }
  return outcomes;
}

// The same, where every rank is to succeed.
inline void run_ranks(int ranks, const RankBody& body, const RunOptions& options = {}) {
  const auto outcomes = start_ranks(ranks, body, options);
  for (int rank = 0; rank < ranks; ++rank) {
    const RankOutcome& outcome = outcomes[rank];
    if (outcome.exit_code != exit_success)
      ADD_FAILURE() << "rank " << rank << " of " << ranks << " ended with exit code " << outcome.exit_code
                    << ", signal " << outcome.signal << ":\n"
                    << outcome.text;
  }
}

}  // namespace conclave::testing
