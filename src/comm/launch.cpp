#include "comm/launch.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/error.h"
#include "base/log.h"

namespace conclave {
namespace {

// torchrun's own entry, without its log and its closing report, which would bury what the ranks said: the first failure
// is written to descriptor CONCLAVE_LAUNCH_REPORT as "<rank> <exit code, or minus the signal>". torchrun itself would
// answer a signal by ending the ranks, for good after half a minute; here the ranks get it, and torchrun waits for
// them.
constexpr const char* launcher_script = R"script(
import logging, os, signal, sys
logging.disable(logging.CRITICAL)
report = int(os.environ.pop("CONCLAVE_LAUNCH_REPORT"))
os.set_inheritable(report, False)

def started_processes():
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = file.read().rpartition(")")[2].split()[1]
        except OSError:
            continue  # ended meanwhile
        if int(parent) == os.getpid():
            yield int(name)

def pass_on(number, frame):
    ranks = list(started_processes())
    if not ranks:
        os._exit(128 + number)
    for rank in ranks:
        try:
            os.kill(rank, number)
        except ProcessLookupError:
            pass

passed_on = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
for number in passed_on:
    signal.signal(number, pass_on)
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run
try:
    run(parse_args(sys.argv[1:]))
except ChildFailedError as error:
    rank, failure = error.get_first_failure()
    os.write(report, f"{rank} {failure.exitcode}\n".encode())
    sys.exit(1)
except SignalException as error:
    sys.exit(128 + error.sigval)
)script";

volatile sig_atomic_t launcher_pid = 0;
volatile sig_atomic_t signal_passed_on = 0;

void pass_on(int signal) {
  signal_passed_on = signal;
  if (launcher_pid > 0) kill(launcher_pid, signal);
}

// The signals that a run answers go to the launcher, and through it to the ranks, for as long as this lives.
class SignalsPassedOn {
 public:
  SignalsPassedOn() {
    struct sigaction action {};
    action.sa_handler = pass_on;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, &interrupt_);
    sigaction(SIGTERM, &action, &terminate_);
    sigaction(SIGUSR1, &action, &user_);
  }
  ~SignalsPassedOn() {
    sigaction(SIGINT, &interrupt_, nullptr);
    sigaction(SIGTERM, &terminate_, nullptr);
    sigaction(SIGUSR1, &user_, nullptr);
    launcher_pid = 0;
    signal_passed_on = 0;
  }

 private:
  struct sigaction interrupt_, terminate_, user_;
};

// torchrun replaces "$name" in the ranks' arguments, and "$$" by "$".
std::string without_macros(const std::string& argument) {
  std::string escaped;
  for (char letter : argument) escaped += letter == '$' ? "$$" : std::string(1, letter);
  return escaped;
}

std::vector<std::string> launcher_command(const LaunchOptions& options) {
  std::vector<std::string> command{options.python.empty() ? default_python() : options.python,
                                   "-c",
                                   launcher_script,
                                   "--standalone",
                                   "--no-python",
                                   fmt::format("--nproc-per-node={}", options.ranks),
                                   "--signals-to-handle=SIGHUP,SIGQUIT"};  // the others are passed on, see above
  command.push_back(options.command[0]);
  for (size_t word = 1; word < options.command.size(); ++word) command.push_back(without_macros(options.command[word]));
  return command;
}

// In the child: becomes the launcher. Only calls that are allowed after a fork.
[[noreturn]] void become(char* const* arguments, pid_t parent) {
  setpgid(0, 0);  // Ctrl-C reaches this program alone, which passes it on once
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(exit_failure);
  execvp(arguments[0], arguments);
  _exit(127);
}

std::string read_all(int descriptor) {
  std::string text;
  char buffer[256];
  for (ssize_t count; (count = read(descriptor, buffer, sizeof buffer)) != 0;) {
    if (count > 0)
      text.append(buffer, count);
    else if (errno != EINTR)
      break;
  }
  return text;
}

int wait_for(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int explain(const std::string& report, int launcher_code, const std::string& python) {
  int rank = 0, code = 0;
  if (std::sscanf(report.c_str(), "%d %d", &rank, &code) == 2) {
    if (code > 0) return code;
    if (-code == signal_passed_on) return 128 + signal_passed_on;
    spdlog::error("rank {} is lost: signal {} ({}) ended it.", rank, -code, strsignal(-code));
    return exit_peer_lost;
  }
  if (launcher_code == 127)
    user_error(
        "{} cannot be run, and torchrun, which starts the ranks, needs it. Give a Python that has torch with --python.",
        python);
  return launcher_code;
}

}  // namespace

std::string default_python() {
  return std::filesystem::exists(CONCLAVE_PYTHON) ? CONCLAVE_PYTHON : "python3";
}

int launch_local_ranks(const LaunchOptions& options) {
  check_invariant(options.ranks >= 1 && !options.command.empty(), "launching {} ranks of {} words", options.ranks,
                  options.command.size());
  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0)
    throw std::runtime_error(fmt::format("no pipe for the launcher: {}", std::strerror(errno)));

  const std::vector<std::string> command = launcher_command(options);
  std::vector<char*> arguments;
  arguments.reserve(command.size() + 1);
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const unsigned threads = std::max(1u, std::thread::hardware_concurrency() / options.ranks);
  setenv("OMP_NUM_THREADS", std::to_string(threads).c_str(), 0);
  setenv("CONCLAVE_LAUNCH_REPORT", std::to_string(report[1]).c_str(), 1);

  SignalsPassedOn signals;
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error(fmt::format("the launcher cannot be started: {}", std::strerror(errno)));
  if (child == 0) {
    fcntl(report[1], F_SETFD, 0);  // stays open in the launcher
    become(arguments.data(), parent);
  }
  launcher_pid = child;
  if (signal_passed_on != 0) kill(child, signal_passed_on);
  unsetenv("CONCLAVE_LAUNCH_REPORT");
  close(report[1]);
  const std::string first_failure = read_all(report[0]);
  close(report[0]);
  const int code = wait_for(child);
  return explain(first_failure, code, command[0]);
}

}  // namespace conclave
