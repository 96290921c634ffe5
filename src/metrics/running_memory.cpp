#include "metrics/running_memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <string>

namespace conclave {

RunningMemory running_memory() {
  RunningMemory memory;
  std::ifstream status("/proc/self/status");
  std::string key;
  while (status >> key) {
    int64_t kibibytes = 0;
    if (key == "VmRSS:" && status >> kibibytes) memory.resident_bytes = kibibytes * 1024;
    if (key == "VmHWM:" && status >> kibibytes) memory.peak_resident_bytes = kibibytes * 1024;
    status.ignore(1 << 16, '\n');
  }
  // Some container kernels have no VmHWM line; getrusage knows the peak as well (in KiB on Linux).
  rusage usage{};
  if (memory.peak_resident_bytes == 0 && ::getrusage(RUSAGE_SELF, &usage) == 0)
    memory.peak_resident_bytes = usage.ru_maxrss * int64_t{1024};
  memory.peak_resident_bytes = std::max(memory.peak_resident_bytes, memory.resident_bytes);
  return memory;
}

}  // namespace conclave
