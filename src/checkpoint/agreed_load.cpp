#include "checkpoint/agreed_load.h"

#include <chrono>
#include <sstream>
#include <string>

#include "base/log.h"
#include "checkpoint/damaged_checkpoint.h"
#include "checkpoint/rank_texts.h"
#include "checkpoint/together.h"

namespace conclave {
namespace {

// Rank 0's, on all ranks: their views of a shared folder may differ for a moment.
std::vector<std::filesystem::path> of_rank_0(std::span<const std::filesystem::path> candidates, Communicator& world) {
  std::string text;
  for (const std::filesystem::path& candidate : candidates) text += candidate.string() + '\0';
  std::istringstream lines(broadcast_text(world, 0, text));
  std::vector<std::filesystem::path> paths;
  for (std::string path; std::getline(lines, path, '\0');) paths.emplace_back(path);
  return paths;
}

}  // namespace

std::optional<LoadedCheckpoint> load_agreed(std::span<const std::filesystem::path> candidates, Communicator& world,
                                            WhenDamaged when_damaged, HashCheck hashes, const ChooseSlices& choose) {
  std::optional<DamagedCheckpoint> damage;
  for (const std::filesystem::path& path : of_rank_0(candidates, world)) {
    LoadedCheckpoint loaded{path, {}, 0, 0};
    const auto start = std::chrono::steady_clock::now();
    try {
      together(world, [&] {
        CheckpointReader reader(path);
        loaded.state = reader.state();
        reader.load(choose(reader), hashes);
        loaded.bytes = reader.bytes_read();
      });
      loaded.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      return loaded;
    } catch (const DamagedCheckpoint& error) {
      if (when_damaged == WhenDamaged::stop) throw;
      if (world.rank() == 0) spdlog::warn("Passing over {}: {}", path.filename().string(), error.what());
      damage = error;
    }
  }
  if (damage) throw DamagedCheckpoint(*damage);
  return std::nullopt;
}

}  // namespace conclave
