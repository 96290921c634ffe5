// The account of one device's tensor memory: what is allocated now, and the most there was. Any thread may use it.
#pragma once

#include <algorithm>
#include <mutex>

#include "memory/memory_category.h"

namespace conclave {

class MemoryAccount {
 public:
  // Whether this is the most there ever was. `fresh`: of these bytes, those that the system was asked for.
  bool add(int64_t bytes, size_t fresh, MemoryCategory category) {
    const auto index = static_cast<size_t>(category);
    const std::lock_guard lock(mutex_);
    report_.now.total += bytes;
    report_.now.of[index] += bytes;
    if (fresh >= size_t{1} << 20) ++report_.large_allocations;
    report_.peak_of.of[index] = std::max(report_.peak_of.of[index], report_.now.of[index]);
    const bool is_peak = report_.now.total > report_.at_peak.total;
    if (is_peak) report_.at_peak = report_.now;
    report_.peak_of.total = report_.at_peak.total;
    return is_peak;
  }
  void remove(int64_t bytes, MemoryCategory category) {
    const std::lock_guard lock(mutex_);
    report_.now.total -= bytes;
    report_.now.of[static_cast<size_t>(category)] -= bytes;
  }
  MemoryReport report() const {
    const std::lock_guard lock(mutex_);
    return report_;
  }
  void reset() {
    const std::lock_guard lock(mutex_);
    report_.at_peak = report_.peak_of = report_.now;
    report_.large_allocations = 0;
  }
  // While the process forks, so that the child finds the account whole.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  mutable std::mutex mutex_;
  MemoryReport report_;
};

}  // namespace conclave
