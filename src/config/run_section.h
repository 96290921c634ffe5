// The section `run` of the job file. What the job is called, how long it runs, where its output goes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "config/duration.h"

namespace conclave {

class Fields;

enum class WantedDevice { automatic, cpu, cuda };

struct RunConfig {
  std::string name = "conclave";
  std::filesystem::path output_dir;  // required
  int64_t steps = 1000;
  int64_t seed = 1234;
  WantedDevice device = WantedDevice::automatic;
  bool deterministic = true;                // only true: every path of this version is deterministic
  int64_t timeout_seconds = 300;            // a collective that takes longer means a lost or hung rank
  std::optional<Duration> stop_after = {};  // the run has saved and ended when its process is so old
};

void describe(RunConfig& run, Fields& to);

}  // namespace conclave
