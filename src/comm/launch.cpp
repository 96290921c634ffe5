#include "comm/launch.h"

#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <random>
#include <string_view>

#include "base/error.h"
#include "base/log.h"

namespace conclave {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto time_to_end_alone = std::chrono::seconds(5);  // after another rank's failure: to say who is lost
constexpr auto time_to_end_when_told = std::chrono::seconds(30);
constexpr std::array passed_on = {SIGINT, SIGTERM, SIGHUP, SIGUSR1, SIGUSR2};

// While it lives, signals wait for next_signal() instead of interrupting. A lost reader of standard error ends nothing.
class SignalQueue {
 public:
  SignalQueue() {
    sigemptyset(&awaited_);
    for (const int signal : passed_on) add(signal);
    for (const int signal : {SIGCHLD, SIGTSTP}) add(signal);
    sigprocmask(SIG_BLOCK, &awaited_, &mask_before_);
    pipe_before_ = std::signal(SIGPIPE, SIG_IGN);
  }
  ~SignalQueue() { restore(); }
  SignalQueue(const SignalQueue&) = delete;

  // Also in a child, before it becomes another program.
  void restore() const {
    std::signal(SIGPIPE, pipe_before_);
    sigprocmask(SIG_SETMASK, &mask_before_, nullptr);
  }
  // 0 if none comes in time.
  int next_signal(std::optional<Clock::time_point> until) const {
    timespec left{3600, 0};
    if (until) {
      const auto rest = std::max<int64_t>(0, std::chrono::nanoseconds(*until - Clock::now()).count());
      left = {static_cast<time_t>(rest / 1'000'000'000), static_cast<long>(rest % 1'000'000'000)};
    }
    const int signal = sigtimedwait(&awaited_, nullptr, &left);
    return signal < 0 ? 0 : signal;
  }

 private:
  // nohup has SIGHUP ignored, here and in the ranks.
  void add(int signal) {
    struct sigaction standing {};
    sigaction(signal, nullptr, &standing);
    const bool is_ignored = (standing.sa_flags & SA_SIGINFO) == 0 && standing.sa_handler == SIG_IGN;
    if (signal != SIGHUP || !is_ignored) sigaddset(&awaited_, signal);
  }

  sigset_t awaited_{}, mask_before_{};
  void (*pipe_before_)(int) = SIG_DFL;
};

std::string new_meeting() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

// The environment of a rank: this process's, where what another launcher has left counts no more.
class RankEnvironment {
 public:
  RankEnvironment(int rank, int ranks, const std::string& meeting) {
    for (char** entry = environ; *entry != nullptr; ++entry)
      if (!is_replaced(*entry)) texts_.emplace_back(*entry);
    for (const char* name : {"RANK", "LOCAL_RANK"}) texts_.push_back(fmt::format("{}={}", name, rank));
    for (const char* name : {"WORLD_SIZE", "LOCAL_WORLD_SIZE"}) texts_.push_back(fmt::format("{}={}", name, ranks));
    texts_.push_back("CONCLAVE_MEETING=" + meeting);
    for (std::string& text : texts_) pointers_.push_back(text.data());
    pointers_.push_back(nullptr);
  }
  char* const* get() const { return pointers_.data(); }

 private:
  static bool is_replaced(std::string_view entry) {
    constexpr std::array names = {"RANK",        "LOCAL_RANK",  "WORLD_SIZE",      "LOCAL_WORLD_SIZE",
                                  "MASTER_ADDR", "MASTER_PORT", "CONCLAVE_MEETING"};
    const std::string_view name = entry.substr(0, entry.find('='));
    return std::find(names.begin(), names.end(), name) != names.end() || name.starts_with("TORCHELASTIC_");
  }
  std::vector<std::string> texts_;
  std::vector<char*> pointers_;
};

struct Rank {
  pid_t process = -1;
  std::optional<int> status;  // as waitpid() gives it; nothing: it runs
};

class LocalRanks {
 public:
  explicit LocalRanks(const LaunchOptions& options) : ranks_(options.ranks) {
    const std::string meeting = new_meeting();
    for (int rank = 0; rank < options.ranks; ++rank)
      ranks_[rank].process = start(options.command, RankEnvironment(rank, options.ranks, meeting));
  }
  ~LocalRanks() {
    tell(SIGKILL);
    for (Rank& rank : ranks_)
      if (rank.process > 0 && !rank.status) waitpid(rank.process, nullptr, 0);
  }
  LocalRanks(const LocalRanks&) = delete;

  int wait() {
    while (std::any_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return !rank.status; })) {
      const int signal = signals_.next_signal(patience_ends_);
      if (signal == SIGTSTP) {
        pause();
      } else if (signal != 0 && signal != SIGCHLD) {
        signal_passed_on_ = signal;
        may_end_ = may_end_ || signal != SIGUSR2;  // which asks for a checkpoint
        tell(signal);
      }
      take_ended();
      if (patience_ends_ && Clock::now() >= *patience_ends_) lose_patience();
    }
    return result();
  }

 private:
  pid_t start(const std::vector<std::string>& command, const RankEnvironment& environment) {
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    const pid_t parent = getpid();
    const pid_t child = fork();
    if (child < 0) throw std::runtime_error(fmt::format("a rank cannot be started: {}", std::strerror(errno)));
    if (child > 0) return child;
    // Only calls that are allowed after a fork. In a group of its own, so that the terminal's Ctrl-C reaches the
    // launcher alone, which passes it on once.
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signals_.restore();
    if (getppid() != parent) _exit(exit_failure);
    execve(arguments[0], arguments.data(), environment.get());
    _exit(127);
  }

  void tell(int signal) const {
    for (const Rank& rank : ranks_)
      if (rank.process > 0 && !rank.status) kill(rank.process, signal);
  }

  void pause() const {
    tell(SIGSTOP);
    raise(SIGSTOP);  // until somebody continues this process
    tell(SIGCONT);
  }

  void take_ended() {
    for (Rank& rank : ranks_) {
      int status = 0;
      if (rank.status || waitpid(rank.process, &status, WNOHANG) != rank.process) continue;
      rank.status = status;
      if (status == 0) continue;
      const bool is_first = !failed_;
      // A rank that lost another one says so before the lost one's own end may be seen here.
      if (is_first || (!was_told_ && has_lost_another(*failed_) && !has_lost_another(rank))) failed_ = rank;
      if (is_first && !may_end_) patience_ends_ = Clock::now() + time_to_end_alone;
    }
  }

  static bool has_lost_another(const Rank& rank) {
    return WIFEXITED(*rank.status) && WEXITSTATUS(*rank.status) == exit_peer_lost;
  }

  void lose_patience() {
    tell(was_told_ ? SIGKILL : SIGTERM);
    tell(SIGCONT);  // one that is stopped could not end
    was_told_ = true;
    patience_ends_ = Clock::now() + time_to_end_when_told;
  }

  int result() const {
    if (!failed_) return exit_success;
    const int status = *failed_->status;
    if (WIFEXITED(status)) return WEXITSTATUS(status);
    const int signal = WTERMSIG(status);
    if (signal == signal_passed_on_) return 128 + signal;
    spdlog::error("rank {} is lost: signal {} ({}) ended it{}.", number_of(*failed_), signal, strsignal(signal),
                  signal == SIGKILL ? ", as the system does where memory runs out" : "");
    return exit_peer_lost;
  }

  int64_t number_of(const Rank& rank) const {
    return std::find_if(ranks_.begin(), ranks_.end(),
                        [&](const Rank& other) { return other.process == rank.process; }) -
           ranks_.begin();
  }

  const SignalQueue signals_;  // before the first rank starts
  std::vector<Rank> ranks_;
  std::optional<Rank> failed_;
  std::optional<Clock::time_point> patience_ends_;  // with the ranks that are left
  bool was_told_ = false;                           // they were asked to end
  bool may_end_ = false;                            // somebody asked them to end, and waits as long as that takes
  int signal_passed_on_ = 0;                        // the newest
};

}  // namespace

int launch_local_ranks(const LaunchOptions& options) {
  check_invariant(options.ranks >= 1 && !options.command.empty(), "launching {} ranks of {} words", options.ranks,
                  options.command.size());
  return LocalRanks(options).wait();
}

}  // namespace conclave
