// Loading that all ranks do alike: either all of them have the same whole checkpoint, or all fail with the same reason.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "checkpoint/checkpoint_reader.h"
#include "comm/communicator.h"

namespace conclave {

enum class WhenDamaged {
  try_next,  // say so, and go on with the next checkpoint
  stop,
};

struct LoadedCheckpoint {
  std::filesystem::path path;
  CheckpointState state;
  int64_t bytes = 0;  // read by this rank
  double seconds = 0;
};

// What to load from this checkpoint. Throws a UserError when it does not suit: that is no damage, and ends the load.
using ChooseSlices = std::function<std::vector<TensorSlice>(const CheckpointReader& checkpoint)>;

// Collective. Loads from the first of `candidates` (rank 0's count) that no rank finds damaged; a slice may have been
// filled from a damaged one before. None: there are no candidates. DamagedCheckpoint when all are damaged, or the first
// is and `when_damaged` says stop. `world` must take CPU tensors (see HostTensors).
std::optional<LoadedCheckpoint> load_agreed(std::span<const std::filesystem::path> candidates, Communicator& world,
                                            WhenDamaged when_damaged, HashCheck hashes, const ChooseSlices& choose);

}  // namespace conclave
