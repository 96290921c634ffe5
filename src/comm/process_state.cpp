#include "comm/process_state.h"

#include <fmt/core.h>

#include <filesystem>
#include <fstream>
#include <iterator>

namespace conclave {

std::string name_of_host() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  std::error_code no_processes, no_network;
  const auto processes = std::filesystem::read_symlink("/proc/self/ns/pid", no_processes);
  const auto network = std::filesystem::read_symlink("/proc/self/ns/net", no_network);
  if (boot.empty() || no_processes || no_network) return "";
  return fmt::format("{} {} {}", boot, processes.string(), network.string());
}

// /proc/PID/stat: number, name in parentheses (which may hold any letter), state.
std::string trouble_of_process(int process) {
  std::ifstream file(fmt::format("/proc/{}/stat", process));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t name_end = text.rfind(')');
  const char state = name_end == std::string::npos || text.size() < name_end + 3 ? 'X' : text[name_end + 2];
  switch (state) {
    case 'T':
      return fmt::format("its process ({}) is stopped, as by SIGSTOP: SIGCONT lets it go on", process);
    case 't':
      return fmt::format("its process ({}) is held by a debugger", process);
    case 'X':
    case 'Z':
      return fmt::format("its process ({}) has ended", process);
    case 'D':
      return fmt::format("its process ({}) waits for a disk or a device", process);
    default:
      return "";
  }
}

}  // namespace conclave
