#include "apps/python_pipe.h"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

// Runs a module as `python -m` does, but for the folder that the user happens to be in: no file there runs in place of
// a module of Python's. A package that is missing is told in a line.
constexpr const char* run_module = R"script(
import runpy, sys
module = sys.argv[1]
del sys.argv[0]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except ImportError as error:
    print(f"error: {sys.executable} cannot import what this command needs: {error}. Set CONCLAVE_PYTHON to a Python that "
          "has the packages of requirements.txt.", file=sys.stderr)
    sys.exit(2)
)script";

bool can_run(const std::string& program) {
  return ::access(program.c_str(), X_OK) == 0;
}

// The one that the user names, that of the build, else python3 of the PATH: who runs the program may not be allowed
// into the folder of who has built it.
std::string python() {
  const char* named = std::getenv("CONCLAVE_PYTHON");
  if (named != nullptr && *named != '\0') return named;
  return can_run(CONCLAVE_PYTHON) ? CONCLAVE_PYTHON : "python3";
}

// The folder that holds the package `conclave`: where the program is a part of it (conclave/bin), or the checkout's.
std::string folder_of_package() {
  std::error_code unknown;
  const std::filesystem::path package =
      std::filesystem::read_symlink("/proc/self/exe", unknown).parent_path().parent_path();
  if (std::filesystem::exists(package / "__init__.py", unknown)) return package.parent_path().string();
  return CONCLAVE_PYTHON_PATH;
}

// So that the modules are found whether they are installed or not. Relative folders would be those of wherever the user
// is.
void set_python_path() {
  std::vector<std::string> folders;
  const std::string own = folder_of_package();
  if (::access(own.c_str(), R_OK | X_OK) == 0) folders.push_back(own);
  const char* others = std::getenv("PYTHONPATH");
  std::istringstream given(others == nullptr ? "" : others);
  for (std::string folder; std::getline(given, folder, ':');)
    if (folder.starts_with('/')) folders.push_back(folder);
  ::setenv("PYTHONPATH", fmt::format("{}", fmt::join(folders, ":")).c_str(), 1);
}

std::vector<std::string> words_of(const std::string& module, const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {python(), "-P", "-c", run_module, module};
  words.insert(words.end(), arguments.begin(), arguments.end());
  return words;
}

// As exec() takes them.
std::vector<char*> pointers_to(std::vector<std::string>& words) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

[[noreturn]] void refuse_python() {
  user_error(
      "{} cannot be run, and this command needs it. Set CONCLAVE_PYTHON to a Python that has the packages of "
      "requirements.txt.",
      python());
}

}  // namespace

PythonPipe::PythonPipe(const std::string& module, const std::vector<std::string>& arguments) {
  std::vector<std::string> words = words_of(module, arguments);
  const std::vector<char*> pointers = pointers_to(words);

  int input[2], output[2];
  if (::pipe2(input, O_CLOEXEC) != 0 || ::pipe2(output, O_CLOEXEC) != 0)
    throw std::runtime_error(fmt::format("no pipe to Python: {}", std::strerror(errno)));
  set_python_path();
  ::signal(SIGPIPE, SIG_IGN);  // a child that has ended is an error of write()
  child_ = ::fork();
  if (child_ < 0) throw std::runtime_error(fmt::format("Python cannot be started: {}", std::strerror(errno)));
  if (child_ == 0) {
    ::dup2(input[0], STDIN_FILENO);
    ::dup2(output[1], STDOUT_FILENO);
    ::execvp(pointers[0], pointers.data());
    ::_exit(127);
  }
  ::close(input[0]);
  ::close(output[1]);
  to_child_ = input[1];
  from_child_ = output[0];
}

PythonPipe::~PythonPipe() {
  if (child_ > 0) {
    ::kill(child_, SIGTERM);
    wait();
  }
  if (from_child_ >= 0) ::close(from_child_);
}

int PythonPipe::wait() {
  if (to_child_ >= 0) ::close(std::exchange(to_child_, -1));
  int status = 0;
  while (::waitpid(child_, &status, 0) < 0 && errno == EINTR) {
  }
  child_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int PythonPipe::exit_code() {
  const int code = wait();
  if (code == 127) refuse_python();
  return code;
}

void PythonPipe::fail(const std::string& what) {
  const int code = exit_code();
  throw std::runtime_error(
      fmt::format("{}: the Python process ended with exit code {}; see what it said above", what, code));
}

void PythonPipe::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(to_child_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot hand data to Python");
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

void PythonPipe::write_line(const std::string& line) {
  write(std::as_bytes(std::span(line)));
  const char end = '\n';
  write(std::as_bytes(std::span(&end, 1)));
}

void PythonPipe::read(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::read(from_child_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail("cannot take data from Python");
    bytes = bytes.subspan(static_cast<size_t>(count));
  }
}

std::string PythonPipe::read_line() {
  std::string line;
  for (char letter = 0;;) {  // a few kilobytes, once: a call for each does not matter
    read(std::as_writable_bytes(std::span(&letter, 1)));
    if (letter == '\n') return line;
    line += letter;
  }
}

void PythonPipe::finish() {
  const int code = exit_code();
  if (code != 0)
    throw std::runtime_error(fmt::format("the Python process ended with exit code {}; see what it said above", code));
}

void become_python(const std::string& module, const std::vector<std::string>& arguments) {
  set_python_path();
  std::vector<std::string> words = words_of(module, arguments);
  ::execvp(words[0].c_str(), pointers_to(words).data());
  refuse_python();
}

}  // namespace conclave
