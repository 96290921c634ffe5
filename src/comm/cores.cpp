#include "comm/cores.h"

#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <stdexcept>

#include <fmt/ranges.h>

#include "comm/environment.h"

namespace conclave {
namespace {

std::vector<int> usable_cores() {
  // The kernel wants room for all cores that the machine could have.
  for (int room = 1024; room <= (1 << 20); room *= 2) {
    cpu_set_t* set = CPU_ALLOC(room);
    const size_t bytes = CPU_ALLOC_SIZE(room);
    std::vector<int> cores;
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    for (int core = 0; known && core < room; ++core)
      if (CPU_ISSET_S(core, bytes, set)) cores.push_back(core);
    CPU_FREE(set);
    if (known) return cores;
  }
  return {0};
}

double read_number(const std::string& file) {
  double number = 0;
  std::ifstream(file) >> number;
  return number;
}

// "max 100000" or "150000 100000".
double quota_of_v2(const std::string& folder) {
  std::string most;
  double period = 0;
  std::ifstream(folder + "/cpu.max") >> most >> period;
  const double time = std::atof(most.c_str());
  return time > 0 && period > 0 ? time / period : 0;
}

double quota_of_v1(const std::string& folder) {
  const double time = read_number(folder + "/cpu.cfs_quota_us"), period = read_number(folder + "/cpu.cfs_period_us");
  return time > 0 && period > 0 ? time / period : 0;
}

// The tightest one of the group and those above it.
void find_quota(Cores& cores, const std::string& mount, std::string group, double (*read)(const std::string&)) {
  while (true) {
    const double quota = read(mount + group);
    if (quota > 0 && (cores.quota == 0 || quota < cores.quota)) {
      cores.quota = quota;
      cores.quota_group = group.empty() ? "/" : group;
    }
    if (group.empty()) return;
    group.resize(group.rfind('/') == std::string::npos ? 0 : group.rfind('/'));
  }
}

}  // namespace

Cores Cores::of_this_process() {
  Cores cores;
  cores.numbers = usable_cores();
  std::ifstream groups("/proc/self/cgroup");
  // "<number>:<controllers>:<path>"; version 2 has the number 0 and no controllers.
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = fmt::format(",{},", line.substr(first + 1, second - first - 1));
    std::string path = line.substr(second + 1);
    if (path == "/") path.clear();
    if (controllers == ",,") find_quota(cores, "/sys/fs/cgroup", path, quota_of_v2);
    if (controllers.find(",cpu,") != std::string::npos) find_quota(cores, "/sys/fs/cgroup/cpu", path, quota_of_v1);
  }
  return cores;
}

std::string Cores::text() const {
  return fmt::format("{} {} {} {}", numbers.size(), fmt::join(numbers, " "), quota, quota_group);
}

Cores Cores::parse(const std::string& text) {
  Cores cores;
  std::istringstream in(text);
  size_t count = 0;
  in >> count;
  for (int number = 0; cores.numbers.size() < count && in >> number;) cores.numbers.push_back(number);
  in >> cores.quota;
  if (in.fail()) throw std::runtime_error("a rank's words on its cores are malformed: " + text);
  in.get();
  std::getline(in, cores.quota_group);
  return cores;
}

int threads_of(const std::vector<Cores>& ranks_of_host, size_t place, int granted) {
  std::map<int, int> users;
  int sharing_quota = 0;
  const Cores& own = ranks_of_host.at(place);
  for (const Cores& rank : ranks_of_host) {
    for (const int core : rank.numbers) ++users[core];
    sharing_quota += rank.quota == own.quota && rank.quota_group == own.quota_group ? 1 : 0;
  }
  double share = 0;
  for (const int core : own.numbers) share += 1.0 / users[core];
  if (own.quota > 0) share = std::min(share, own.quota / sharing_quota);
  if (granted > 0) share = std::min<double>(share, granted);
  return std::max(1, static_cast<int>(share + 1e-6));
}

int threads_asked_for() {
  const auto asked = variable("OMP_NUM_THREADS");
  const int threads = asked ? std::atoi(asked->c_str()) : 0;  // of a list the first is of the outermost loops
  return threads == 1 && variable("TORCHELASTIC_RUN_ID") ? 0 : std::max(0, threads);
}

}  // namespace conclave
