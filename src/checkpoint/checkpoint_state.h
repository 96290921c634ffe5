// What a resumable checkpoint knows beside tensors, and what its tensors are called.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace conclave {

// Random numbers are functions of the seed, a name and a position (see random.h), and the order of the data is one of
// the seed and the sample's number: seed, step and samples are all that there is of counters and generators. The
// learning rate is a function of the job and the step.
struct CheckpointState {
  int64_t step = 0;     // finished steps: the position in the schedule
  int64_t samples = 0;  // the position in the data: the next sample of its stream, over all ranks
  int64_t tokens = 0;   // trained on by them, over all ranks
  uint64_t seed = 0;
  int64_t updates = 0;             // of the optimizer: steps that were not skipped
  int64_t skipped_in_a_row = 0;    // the newest steps that were skipped
  std::string data_fingerprint{};  // of the training data
  // Of a run that checkpoint.resume told to go on from a checkpoint by its path: the identity of that one (see
  // Manifest). Empty: of one that was not.
  std::string resumed_from{};
  std::map<std::string, std::string> job{};       // the resolved job: "section.key" to the value as a job file has it
  std::string model_config{};                     // the model's config.json itself; its path is in `job`
  std::map<std::string, int64_t> layout{};        // of the ranks that saved it: axis to degree; for people
  std::map<std::string, std::string> versions{};  // of the software that wrote it; for people
  // Small state that is no parameter and the same on all ranks, such as a balancing rule's bias of each layer's
  // experts. Finite values; fp32 ones come back as they were.
  std::map<std::string, std::vector<double>> values{};

  bool operator==(const CheckpointState&) const = default;
};

// Tensors in a checkpoint are called "<kind>/<parameter>"; the kinds are "parameter" and what the optimizer names.
inline constexpr std::string_view kind_parameter = "parameter";

inline std::string state_tensor_name(std::string_view kind, std::string_view parameter) {
  return std::string(kind) + "/" + std::string(parameter);
}

}  // namespace conclave
