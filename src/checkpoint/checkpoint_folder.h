// The folder that holds a run's checkpoints: `step-00000100/` each, `latest` with the name of the newest, `.tmp-*` for
// what is not finished, and `abandoned-*/` for what a run left behind when it went back to an older checkpoint. A
// folder called step-* was complete when it got that name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace conclave {

inline constexpr const char* latest_file_name = "latest";

std::string checkpoint_name(int64_t step);                           // "step-00000100"
std::optional<int64_t> step_of_checkpoint(const std::string& name);  // none: it is no such name

// Everything called step-<number>, ascending by step, damaged or not. Empty when there is no such folder.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& folder);

// What `latest` says; none, with a warning, when it says nothing usable. It need not be there.
std::optional<std::filesystem::path> named_by_latest(const std::filesystem::path& folder);

// Why a checkpoint cannot be loaded, as far as its manifest and its files' presence and length tell; none: it can.
// Hashes are not verified.
std::optional<std::string> damage_of(const std::filesystem::path& checkpoint);

// In the order in which a run tries to resume from them: the one that `latest` names, then all others, the newest
// first. Damaged or not.
std::vector<std::filesystem::path> checkpoints_to_try(const std::filesystem::path& folder);

// The first of them without damage (see damage_of); none: there is no such checkpoint. What is passed over is logged as
// a warning. Reads files only: ranks that share the folder decide alike.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& folder);

// Which checkpoints stay: the newest `newest` (>= 1) that are not damaged, and those of every `every`-th step; 0: none.
struct Retention {
  int64_t newest = 1;
  int64_t every = 0;
};

// What does not stay, but never what is newer than the newest that stay, nor the one that newest_checkpoint gives: the
// last whole one is not removed.
std::vector<std::filesystem::path> checkpoints_to_prune(const std::filesystem::path& folder, Retention retention);

// Removes them. One rank calls it.
void prune_checkpoints(const std::filesystem::path& folder, Retention retention);

// Removes a checkpoint's folder, which is called a checkpoint no longer while it is half removed.
void remove_checkpoint(const std::filesystem::path& checkpoint);

// Where the checkpoint called `name` is written before it gets its name. remove_unfinished() knows it.
std::filesystem::path unfinished_folder(const std::filesystem::path& folder, const std::string& name);

// Removes what an interrupted save or removal has left.
void remove_unfinished(const std::filesystem::path& folder);

// Atomically.
void set_latest(const std::filesystem::path& folder, const std::string& name);
void remove_latest(const std::filesystem::path& folder);

// Makes the next `abandoned-<number>` of the folder. What is in it is no checkpoint of the run: nothing above finds it.
std::filesystem::path new_abandoned_folder(const std::filesystem::path& folder);
std::vector<std::filesystem::path> list_abandoned(const std::filesystem::path& folder);

}  // namespace conclave
