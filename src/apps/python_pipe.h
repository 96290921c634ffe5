// A Python module of this project as a child process that data is streamed to and from, through its standard input and
// output; what it says on standard error is seen by the user.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace conclave {

class PythonPipe {
 public:
  // Runs `python -m <module> <arguments>`, where nothing is imported from the current folder. std::runtime_error on
  // failure, like everything below: also when the child has ended too early.
  PythonPipe(const std::string& module, const std::vector<std::string>& arguments);
  ~PythonPipe();  // ends a child that was not waited for
  PythonPipe(const PythonPipe&) = delete;
  PythonPipe& operator=(const PythonPipe&) = delete;

  void write(std::span<const std::byte> bytes);
  void write_line(const std::string& line);
  void read(std::span<std::byte> bytes);
  std::string read_line();  // without its line feed
  // Closes the child's input and waits for it. An exit code other than 0 is an error.
  void finish();
  // The same of a child that tells its errors itself: its exit code.
  int exit_code();

 private:
  [[noreturn]] void fail(const std::string& what);
  int wait();

  pid_t child_ = -1;
  int to_child_ = -1;
  int from_child_ = -1;
};

// Becomes `python -m <module> <arguments>`: standard input and output, signals and the exit code are the module's.
// A Python that cannot be run is a UserError.
[[noreturn]] void become_python(const std::string& module, const std::vector<std::string>& arguments);

}  // namespace conclave
