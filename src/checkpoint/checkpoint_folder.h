// The folder that holds a run's checkpoints: `step-00000100/` each, `latest` with the name of the newest, and `.tmp-*`
// for what is not finished. A folder called step-* was complete when it got that name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace conclave {

std::string checkpoint_name(int64_t step);  // "step-00000100"

// Everything called step-<number>, ascending by step, damaged or not. Empty when there is no such folder.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& folder);

// Why a checkpoint cannot be loaded, as far as its manifest and its files' presence and length tell; none: it can.
// Hashes are not verified.
std::optional<std::string> damage_of(const std::filesystem::path& checkpoint);

// The checkpoint that `latest` names or, if it or its file is missing or damaged, the newest that is not damaged; none:
// there is no such checkpoint. What is passed over is logged as a warning. Reads files only: ranks that share the
// folder decide alike.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& folder);

// Removes all but the newest `keep` (>= 1) undamaged checkpoints and what is newer than them; never the one that
// newest_checkpoint gives. One rank calls it.
void prune_checkpoints(const std::filesystem::path& folder, int64_t keep);

// Removes what an interrupted save or removal has left.
void remove_unfinished(const std::filesystem::path& folder);

// Atomically.
void set_latest(const std::filesystem::path& folder, const std::string& name);

}  // namespace conclave
