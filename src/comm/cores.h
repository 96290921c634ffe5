// The cores that a rank computes on.
#pragma once

#include <string>
#include <vector>

namespace conclave {

// What one process may use, as it tells the other ranks of its host.
struct Cores {
  std::vector<int> numbers;  // those that it is bound to (sched_setaffinity)
  double quota = 0;          // of processor time, in cores, of its control group (cpu.max); 0: no limit
  std::string quota_group;   // processes with the same quota and group share it

  static Cores of_this_process();
  std::string text() const;
  static Cores parse(const std::string& text);  // throws std::runtime_error
};

// The threads for the rank at `place` of the ranks of one host: its share of its cores, which those that are bound to
// the same ones divide, and of its quota. Not more than `granted` by the launcher, where that is not 0. At least 1.
int threads_of(const std::vector<Cores>& ranks_of_host, size_t place, int granted);

// The most threads that OMP_NUM_THREADS asks for; 0 if it does not. torchrun sets it to 1 for everybody who did not:
// that 1 means nothing.
int threads_asked_for();

}  // namespace conclave
