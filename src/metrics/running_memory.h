// The memory this process holds, as the kernel counts it (proc(5), /proc/self/status).
#pragma once

#include <cstdint>

namespace conclave {

struct RunningMemory {
  int64_t resident_bytes = 0;       // VmRSS: in memory now, shared libraries included
  int64_t peak_resident_bytes = 0;  // VmHWM: the most there ever was
};

RunningMemory running_memory();

}  // namespace conclave
