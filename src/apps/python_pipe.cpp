#include "apps/python_pipe.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "comm/launch.h"

namespace conclave {
namespace {

// So that the module is found whatever is installed.
void add_to_python_path() {
  const char* others = std::getenv("PYTHONPATH");
  std::string path = CONCLAVE_PYTHON_PATH;
  if (others != nullptr && *others != '\0') path += fmt::format(":{}", others);
  ::setenv("PYTHONPATH", path.c_str(), 1);
}

}  // namespace

PythonPipe::PythonPipe(const std::string& module, const std::vector<std::string>& arguments) {
  std::vector<std::string> words = {default_python(), "-m", module};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);

  int input[2], output[2];
  if (::pipe2(input, O_CLOEXEC) != 0 || ::pipe2(output, O_CLOEXEC) != 0)
    throw std::runtime_error(fmt::format("no pipe to Python: {}", std::strerror(errno)));
  add_to_python_path();
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
  if (code == 127)
    throw std::runtime_error(fmt::format("{} cannot be run, which this command needs", default_python()));
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

}  // namespace conclave
