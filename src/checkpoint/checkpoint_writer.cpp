#include "checkpoint/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <system_error>

#include "base/atomic_file.h"
#include "base/error.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/manifest.h"
#include "checkpoint/replace_folder.h"
#include "checkpoint/safetensors_reader.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/verdict.h"

namespace conclave {
namespace {

// Writes one slice as `stored`, hashing what is written.
void write_piece(const File& file, const StoredTensor& stored, const at::Tensor& data, uint64_t hash_block_bytes,
                 Piece& piece) {
  const int64_t elements_per_block = static_cast<int64_t>(hash_block_bytes / data.element_size());
  for (int64_t done = 0; done < data.numel(); done += elements_per_block) {
    const int64_t count = std::min(elements_per_block, data.numel() - done);
    const at::Tensor block = data.narrow(0, done, count).cpu();  // no copy when it is there already
    const std::span<const std::byte> bytes = memory_of(block);
    piece.hashes.push_back(XXH3_64bits(bytes.data(), bytes.size()));
    file.write(stored.begin + static_cast<uint64_t>(done * data.element_size()), bytes);
  }
}

// Writes this rank's file, if it has anything to write, and returns what the manifest must know of it.
Manifest write_own_file(const std::filesystem::path& aside, int rank, std::span<const TensorSlice> slices,
                        uint64_t hash_block_bytes) {
  Manifest part;
  const std::string file_name = fmt::format("rank-{:05}.safetensors", rank);
  std::vector<SafetensorsHeader::Entry> entries;
  for (const TensorSlice& slice : slices) {
    check_invariant(slice.data.dim() == 1 && slice.data.is_contiguous(), "slice of {} is flat", slice.name);
    const StoredDtype dtype = stored_dtype_of(slice.data.scalar_type());
    const auto [tensor, is_new] = part.tensors.try_emplace(slice.name, ManifestTensor{dtype, slice.shape, {}});
    check_invariant(tensor->second.dtype == dtype && tensor->second.shape == slice.shape,
                    "the slices of {} have one type and shape", slice.name);
    if (slice.data.numel() == 0) continue;
    Piece piece{slice.begin, slice.begin + slice.data.numel(), file_name, 0, {}};
    entries.push_back({piece_name(slice.name, piece), dtype, {slice.data.numel()}});
    tensor->second.pieces.push_back(std::move(piece));
  }
  if (entries.empty()) return part;

  const SafetensorsHeader header = SafetensorsHeader::plan(std::move(entries));
  const File file = create_safetensors(aside / file_name, header);
  for (const TensorSlice& slice : slices) {
    for (Piece& piece : part.tensors.at(slice.name).pieces) {
      if (slice.data.numel() == 0 || piece.begin != slice.begin) continue;
      const StoredTensor& stored = *header.find(piece_name(slice.name, piece));
      piece.offset = stored.begin;
      write_piece(file, stored, slice.data, hash_block_bytes, piece);
    }
  }
  file.flush();
  part.files.emplace(file_name, header.file_bytes());
  return part;
}

// Every rank's text, on every rank, in rank order.
std::vector<std::string> gather_texts(Communicator& world, const std::string& own) {
  const at::Tensor lengths = at::zeros({world.size()}, at::kLong);
  world.all_gather(lengths, at::full({1}, static_cast<int64_t>(own.size()), at::kLong)).wait();
  const int64_t longest = lengths.max().item<int64_t>();
  at::Tensor padded = at::zeros({longest}, at::kByte);
  std::memcpy(padded.data_ptr(), own.data(), own.size());
  const at::Tensor all = at::zeros({world.size() * longest}, at::kByte);
  world.all_gather(all, padded).wait();
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < world.size(); ++rank) {
    const char* begin = static_cast<const char*>(all.data_ptr()) + rank * longest;
    texts.emplace_back(begin, static_cast<size_t>(lengths[rank].item<int64_t>()));
  }
  return texts;
}

// Rank 0, when all files are on the disk: the checkpoint gets its manifest, then its name.
void publish(const std::filesystem::path& folder, const std::filesystem::path& aside, const std::string& name,
             Manifest manifest, std::span<const std::string> contributions) {
  for (const std::string& contribution : contributions) add_contribution(manifest, contribution);
  const std::optional<std::string> flaw = flaw_of(manifest);
  check_invariant(!flaw, "the slices of all ranks make a whole checkpoint: {}", flaw.value_or(""));
  write_file_atomically(aside / manifest_file_name, manifest_text(manifest));
  replace_folder(aside, folder / name);
  set_latest(folder, name);
}

}  // namespace

std::filesystem::path save_checkpoint(const std::filesystem::path& folder, const CheckpointState& state,
                                      std::span<const TensorSlice> slices, Communicator& world,
                                      uint64_t hash_block_bytes) {
  const std::string name = checkpoint_name(state.step);
  const std::filesystem::path aside = folder / (".tmp-" + name);
  try {
    together(world, [&] {
      if (world.rank() != 0) return;
      std::filesystem::create_directories(folder);
      remove_unfinished(folder);
      std::filesystem::create_directory(aside);
    });
    std::string contribution;
    together(world,
             [&] { contribution = contribution_text(write_own_file(aside, world.rank(), slices, hash_block_bytes)); });
    const std::vector<std::string> contributions = gather_texts(world, contribution);
    together(world, [&] {
      if (world.rank() == 0) publish(folder, aside, name, Manifest{state, hash_block_bytes, {}, {}}, contributions);
    });
  } catch (...) {
    std::error_code ignored;
    if (world.rank() == 0) std::filesystem::remove_all(aside, ignored);
    throw;
  }
  return folder / name;
}

std::vector<TensorSlice> share_among_replicas(std::span<const TensorSlice> slices, int replica, int replicas) {
  check_invariant(0 <= replica && replica < replicas, "replica {} is one of {}", replica, replicas);
  std::vector<TensorSlice> shared;
  for (const TensorSlice& slice : slices) {
    const int64_t begin = slice.data.numel() * replica / replicas;
    const int64_t end = slice.data.numel() * (replica + 1) / replicas;
    shared.push_back({slice.name, slice.shape, slice.begin + begin, slice.data.narrow(0, begin, end - begin)});
  }
  return shared;
}

}  // namespace conclave
