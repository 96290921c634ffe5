// The time of a step on paper: kernels and collectives say what they cost, and the clock adds it up. What computes goes
// on one after the other; collectives and copies to the host run beside it on lanes of their own, each one after the
// other, until somebody waits for them.
#pragma once

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <array>

#include "base/step_clock.h"

namespace conclave {

// What a machine reaches, per second.
struct PaperRates {
  double fp32_operations = 1;  // of matrix products
  double bf16_operations = 1;
  double fp8_operations = 1;
  double attention = 1;        // the rate of attention over that of products
  double bytes = 1;            // that passes over memory read and write
  double optimizer_bytes = 1;  // that the optimizer's passes do
  double host_bytes = 1;       // to where layer inputs are offloaded
};

class PaperClock final : public TimeSource {
 public:
  explicit PaperClock(const PaperRates& rates) : rates_(rates) {}

  std::chrono::steady_clock::time_point now() const override {
    using Duration = std::chrono::steady_clock::duration;
    return std::chrono::steady_clock::time_point(
        std::chrono::duration_cast<Duration>(std::chrono::duration<double>(now_)));
  }
  double seconds() const { return now_; }

  // Of operands of this dtype.
  void multiply(double operations, at::ScalarType dtype) { now_ += operations / rate_of(dtype); }
  void attend(double operations, at::ScalarType dtype) { now_ += operations / (rates_.attention * rate_of(dtype)); }
  void pass(double bytes) { now_ += bytes / rates_.bytes; }
  void optimize(double bytes) { now_ += bytes / rates_.optimizer_bytes; }

  // Gathers and reductions are one lane, routed rows another, copies to the host and back a third.
  enum class Lane { reductions, rows, host };
  // Starts what takes so long on a lane; when it will have ended.
  double start(Lane lane, double seconds) {
    double& end = ends_[static_cast<size_t>(lane)];
    return end = std::max(end, now_) + seconds;
  }
  double start_copy(double bytes) { return start(Lane::host, bytes / rates_.host_bytes); }
  void wait_until(double moment) { now_ = std::max(now_, moment); }

 private:
  double rate_of(at::ScalarType dtype) const {
    return dtype == at::kFloat      ? rates_.fp32_operations
           : dtype == at::kBFloat16 ? rates_.bf16_operations
                                    : rates_.fp8_operations;
  }

  PaperRates rates_;
  double now_ = 0;
  std::array<double, 3> ends_{};
};

}  // namespace conclave
