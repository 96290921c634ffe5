// What the allocations of an engine's rank counted, and whether that is what was planned. Tolerance 2 %, and 64 KiB for
// what grows with nothing (a few vectors of sums, alignment).
#pragma once

#include <fmt/format.h>

#include "dist/planner/engine.h"
#include "memory/memory_category.h"

namespace conclave::testing {

inline const bool counting = (install_counting_allocator(), true);

struct Measured {
  MemoryReport memory;    // less what was there before the engine
  at::Tensor choices_LE;  // of the last micro-step
};

inline Measured measure(const Case& c, const CheckedJob& job, const Axes& axes) {
  const MemoryUse before = memory_report().now;
  Measured measured;
  {
    EngineRank engine(c, job, axes);
    const MicroBatch batch = batch_of(job, c.rank);
    reset_memory_peaks();
    for (int step = 0; step < 2; ++step)
      for (int64_t m = 0; m < c.micro_steps; ++m)
        measured.choices_LE =
            engine.forward_backward->train(batch, {m == 0, m == c.micro_steps - 1, 0.01, 1.0}).balance.count_LE;
    measured.memory = memory_report();
  }
  for (MemoryUse* use : {&measured.memory.at_peak, &measured.memory.peak_of}) {
    use->total -= before.total;
    for (int category = 0; category < memory_categories; ++category) use->of[category] -= before.of[category];
  }
  return measured;
}

inline void expect_near(const std::string& what, int64_t measured, int64_t planned) {
  constexpr double tolerance = 0.02;
  constexpr int64_t constants = 64 << 10;
  EXPECT_LE(std::abs(measured - planned), tolerance * static_cast<double>(measured) + constants)
      << what << ": planned " << planned << ", measured " << measured;
}

inline void expect_planned(const MemoryReport& measured, const PlannedMemory& planned) {
  SCOPED_TRACE("planned peak: " + planned.moment);
  expect_near("peak", measured.peak_of.total, planned.peak_of.total);
  for (int category = 0; category < memory_categories; ++category) {
    const std::string name = name_of(static_cast<MemoryCategory>(category));
    expect_near("peak of " + name, measured.peak_of.of[category], planned.peak_of.of[category]);
    expect_near(name + " at the peak", measured.at_peak.of[category], planned.at_peak.of[category]);
  }
}

}  // namespace conclave::testing
