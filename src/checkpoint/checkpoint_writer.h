// Saves a resumable checkpoint: every rank writes the ranges it is given into a safetensors file of its own, rank 0 the
// manifest of them all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "checkpoint/checkpoint_state.h"
#include "checkpoint/tensor_slice.h"
#include "comm/communicator.h"

namespace conclave {

// Data is hashed in blocks of this size; a reader that needs part of a block reads all of it.
inline constexpr uint64_t default_hash_block_bytes = 8 << 20;

// Collective. Writes `folder`/step-<step>/ aside, flushes it, gives it its name and makes `latest` name it; returns its
// path. An older checkpoint of the same step is replaced. `slices`, called as state_tensor_name() says, of any type and
// on any device: over all ranks they must cover each tensor once (see share_among_replicas). A rank without slices
// takes part too. `world` must take CPU tensors (see HostTensors).
//
// Any failure, on any rank, is thrown on all of them (see together()) and leaves older checkpoints as they were and the
// name free; only when `latest` cannot be written the new checkpoint stays under its name, whole.
std::filesystem::path save_checkpoint(const std::filesystem::path& folder, const CheckpointState& state,
                                      std::span<const TensorSlice> slices, Communicator& world,
                                      uint64_t hash_block_bytes = default_hash_block_bytes);

// Of slices that `replicas` ranks hold alike, the part that this one writes: the parts of all are disjoint, and
// together the slices. Views, no copies.
std::vector<TensorSlice> share_among_replicas(std::span<const TensorSlice> slices, int replica, int replicas);

}  // namespace conclave
