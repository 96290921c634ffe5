#include "benchmarks/stopwatch.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "device/device.h"

namespace conclave {

Stopwatch::Stopwatch(ParallelJob& job) : job_(job) {
  if (device_of(job.device()).facts().works_by_itself) settle_ = [&job] { device_of(job.device()).synchronize(); };
}

double Stopwatch::median(int64_t repeats, const std::function<void(int64_t)>& work) {
  std::vector<double> seconds;
  job_.axes().world().barrier();
  for (int64_t i = -1; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work(std::max<int64_t>(i, 0));
    if (settle_) settle_();
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    if (i >= 0) seconds.push_back(passed.count());
  }
  const auto middle = seconds.begin() + repeats / 2;
  std::nth_element(seconds.begin(), middle, seconds.end());
  return job_.max_over_world({*middle})[0];
}

}  // namespace conclave
