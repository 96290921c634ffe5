// One run at a time in an output folder: two would write the same checkpoints and metrics. The lock is the system's, on
// the file `lock` in the folder, and ends with the process that holds it, however that ends; the file stays, and says
// who held it last.
//
// Hosts that share the folder see each other's lock where the file system passes flock() on (NFS, GPFS, Lustre mounted
// with `flock`). A file system without locks is warned of once, and the run goes on.
#pragma once

#include <filesystem>

namespace conclave {

inline constexpr const char* lock_file_name = "lock";

class RunLock {
 public:
  // Takes the lock of `folder`, which must exist. UserError, naming the folder and the process that holds it, when
  // another run has it and does not end within some seconds.
  explicit RunLock(const std::filesystem::path& folder);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_;
};

}  // namespace conclave
