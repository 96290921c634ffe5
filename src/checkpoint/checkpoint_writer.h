// Saves resumable checkpoints: every rank writes the ranges it is given into a safetensors file of its own, rank 0 the
// manifest of them all.
//
// Files are written, hashed and flushed by a background thread, and ranks talk only in the calls marked as collective,
// so that a save never uses a communicator beside the training that goes on meanwhile:
//
//   begin      rank 0 makes the folder aside; all threads begin to write their files
//   take_back  (not collective) the slices may change again; what is not written yet is copied
//   go_on      all files are flushed: rank 0 learns what the manifest must say; its thread publishes the checkpoint
//   go_on      it is published: all ranks know
//
// A failure anywhere is thrown on all ranks by the call that learns of it (see together()), and leaves older
// checkpoints as they were and the name free; only when `latest` cannot be written the new checkpoint stays under its
// name, whole.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <future>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/background_thread.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/checkpoint_state.h"
#include "checkpoint/lent_blocks.h"
#include "checkpoint/tensor_slice.h"
#include "comm/communicator.h"

namespace conclave {

// Data is hashed in blocks of this size; a reader that needs part of a block reads all of it.
inline constexpr uint64_t default_hash_block_bytes = 8 << 20;

struct FinishedSave {
  std::filesystem::path path;
  int64_t step = 0;
  int64_t bytes = 0;   // of all ranks' files
  double seconds = 0;  // from begin() until it was published
};

class CheckpointWriter {
 public:
  // `world` must take CPU tensors (see HostTensors), and outlive this. `retention`: what is pruned after each save.
  CheckpointWriter(std::filesystem::path folder, Communicator& world, std::optional<Retention> retention = {},
                   uint64_t hash_block_bytes = default_hash_block_bytes);
  // Gives up a save that is not done.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;

  // Collective; no save is under way. Begins `folder`/step-<step>/, which replaces an older checkpoint of the same
  // step. `slices`, called as state_tensor_name() says, of any type and on any device: over all ranks they must cover
  // each tensor once. A rank without slices takes part too. Their memory must stay as it is until take_back() or
  // finish() returns, or go_on() after which no file is being written.
  void begin(const CheckpointState& state, std::span<const TensorSlice> slices);
  // Of this rank alone: waits until the memory of the slices is not read any more: none of it is when all is written,
  // and what is not is copied to host memory, which is kept for the next save. With no save under way: nothing.
  void take_back() { lent_.take_back(); }

  // The step that is being saved, on every rank.
  std::optional<int64_t> saving() const { return is_saving() ? std::optional(state_.step) : std::nullopt; }
  // Whether this rank's thread is at work.
  bool is_busy() const { return background_.is_busy(); }
  // Collective, with a save under way and no rank busy. The result once it is done.
  std::optional<FinishedSave> go_on();
  // Collective, with a save under way: waits until it is done. Says on the way how far it is.
  FinishedSave finish();

 private:
  enum class Phase { idle, writing, publishing };
  bool is_saving() const { return phase_ != Phase::idle; }
  struct PlannedFile;
  void write_own_file(PlannedFile& planned);
  void publish(const std::vector<std::string>& contributions);
  bool some_rank_is_busy();
  void abandon() noexcept;

  const std::filesystem::path folder_;
  Communicator& world_;
  const std::optional<Retention> retention_;
  const uint64_t hash_block_bytes_;

  Phase phase_ = Phase::idle;
  CheckpointState state_;
  std::filesystem::path aside_;
  std::chrono::steady_clock::time_point began_;
  int64_t own_bytes_ = 0;     // of this rank's slices
  std::string contribution_;  // to the manifest; the thread's until work_ is ready, like what follows
  int64_t all_bytes_ = 0;     // of all ranks' files; rank 0's
  double seconds_ = 0;
  LentBlocks lent_;
  std::atomic<int64_t> written_bytes_ = 0;
  std::atomic<bool> given_up_ = false;
  std::future<void> work_;
  BackgroundThread background_;  // last: ends before what it uses
};

// A save from begin to end.
std::filesystem::path save_checkpoint(const std::filesystem::path& folder, const CheckpointState& state,
                                      std::span<const TensorSlice> slices, Communicator& world,
                                      uint64_t hash_block_bytes = default_hash_block_bytes);

// Of slices that `replicas` ranks hold alike, the part that this one writes: the parts of all are disjoint, and
// together the slices. Views, no copies.
std::vector<TensorSlice> share_among_replicas(std::span<const TensorSlice> slices, int replica, int replicas);

}  // namespace conclave
