#include "checkpoint/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <xxhash.h>

#include <algorithm>
#include <map>
#include <memory>
#include <system_error>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/seconds_since.h"
#include "checkpoint/manifest.h"
#include "checkpoint/rank_texts.h"
#include "checkpoint/replace_folder.h"
#include "checkpoint/safetensors_reader.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/together.h"

namespace conclave {
namespace {

using std::chrono::steady_clock;

void check_flat(std::span<const TensorSlice> slices) {
  for (const TensorSlice& slice : slices)
    check_invariant(slice.data.dim() == 1 && slice.data.is_contiguous(), "slice of {} is flat", slice.name);
}

Piece& piece_of(Manifest& part, const TensorSlice& slice) {
  std::vector<Piece>& pieces = part.tensors.at(slice.name).pieces;
  return *std::find_if(pieces.begin(), pieces.end(), [&](const Piece& piece) { return piece.begin == slice.begin; });
}

}  // namespace

// What a rank will write: the pieces of its slices in one file, in blocks that are hashed as one.
struct CheckpointWriter::PlannedFile {
  struct Place {
    Piece* piece;  // of `part`
    uint64_t offset;
  };
  std::string name;
  Manifest part;  // hashes are filled in by writing
  SafetensorsHeader header;
  std::vector<at::Tensor> blocks;  // in file order
  std::vector<Place> places;       // one a block

  PlannedFile(std::string file_name, std::span<const TensorSlice> slices, uint64_t block_bytes)
      : name(std::move(file_name)) {
    std::vector<SafetensorsHeader::Entry> entries;
    std::map<std::string, const TensorSlice*> by_name;
    for (const TensorSlice& slice : slices) {
      const StoredDtype dtype = stored_dtype_of(slice.data.scalar_type());
      const auto [tensor, is_new] = part.tensors.try_emplace(slice.name, ManifestTensor{dtype, slice.shape, {}});
      check_invariant(tensor->second.dtype == dtype && tensor->second.shape == slice.shape,
                      "the slices of {} have one type and shape", slice.name);
      if (slice.data.numel() == 0) continue;
      Piece piece{slice.begin, slice.begin + slice.data.numel(), name, 0, {}};
      entries.push_back({piece_name(slice.name, piece), dtype, {slice.data.numel()}});
      by_name[entries.back().name] = &slice;
      tensor->second.pieces.push_back(std::move(piece));
    }
    if (entries.empty()) return;
    header = SafetensorsHeader::plan(std::move(entries));
    for (const StoredTensor& stored : header.tensors()) add_blocks(*by_name.at(stored.name), stored.begin, block_bytes);
  }

  int64_t bytes() const {
    int64_t sum = 0;
    for (const at::Tensor& block : blocks) sum += static_cast<int64_t>(block.nbytes());
    return sum;
  }

 private:
  void add_blocks(const TensorSlice& slice, uint64_t offset, uint64_t block_bytes) {
    Piece& piece = piece_of(part, slice);
    piece.offset = offset;
    const int64_t size = slice.data.element_size();
    const int64_t elements = static_cast<int64_t>(block_bytes) / size;
    for (int64_t begin = 0; begin < slice.data.numel(); begin += elements) {
      blocks.push_back(slice.data.narrow(0, begin, std::min(elements, slice.data.numel() - begin)));
      places.push_back({&piece, offset + static_cast<uint64_t>(begin * size)});
    }
  }
};

CheckpointWriter::CheckpointWriter(std::filesystem::path folder, Communicator& world,
                                   std::optional<Retention> retention, uint64_t hash_block_bytes)
    : folder_(std::move(folder)), world_(world), retention_(retention), hash_block_bytes_(hash_block_bytes) {}

CheckpointWriter::~CheckpointWriter() {
  abandon();
}

void CheckpointWriter::begin(const CheckpointState& state, std::span<const TensorSlice> slices) {
  check_invariant(!is_saving(), "step {} is saved before step {} begins to be", state_.step, state.step);
  began_ = steady_clock::now();
  state_ = state;
  aside_ = unfinished_folder(folder_, checkpoint_name(state.step));
  written_bytes_ = 0;
  try {
    std::shared_ptr<PlannedFile> planned;
    together(world_, [&] {
      check_flat(slices);
      if (world_.rank() == 0) {
        std::filesystem::create_directories(folder_);
        remove_unfinished(folder_);
        std::filesystem::create_directory(aside_);
      }
      planned = std::make_shared<PlannedFile>(fmt::format("rank-{:05}.safetensors", world_.rank()), slices,
                                              hash_block_bytes_);
      own_bytes_ = planned->bytes();
      lent_.lend(std::exchange(planned->blocks, {}));
    });
    phase_ = Phase::writing;
    work_ = background_.run([this, planned] {
      // Also when writing fails: training may be waiting for its memory.
      const auto ended = std::shared_ptr<void>(nullptr, [this](void*) { lent_.end(); });
      write_own_file(*planned);
    });
  } catch (...) {
    abandon();
    throw;
  }
}

std::optional<FinishedSave> CheckpointWriter::go_on() {
  check_invariant(is_saving(), "a save is under way");
  try {
    together(world_, [&] {
      if (work_.valid()) work_.get();
    });
    if (phase_ == Phase::writing) {
      std::vector<std::string> contributions = gather_texts(world_, contribution_);
      if (world_.rank() == 0)
        work_ = background_.run([this, contributions = std::move(contributions)] { publish(contributions); });
      phase_ = Phase::publishing;
      return std::nullopt;
    }
  } catch (...) {
    abandon();
    throw;
  }
  phase_ = Phase::idle;
  aside_.clear();
  return FinishedSave{folder_ / checkpoint_name(state_.step), state_.step, all_bytes_, seconds_};
}

FinishedSave CheckpointWriter::finish() {
  for (;;) {
    if (some_rank_is_busy()) continue;
    if (auto finished = go_on()) return *std::move(finished);
  }
}

// Ranks ask each other again and again, so that none waits in a collective for as long as another one's disk takes.
bool CheckpointWriter::some_rank_is_busy() {
  if (work_.valid() && work_.wait_for(std::chrono::seconds(10)) == std::future_status::timeout)
    spdlog::info("saving step {}: {:.1f} of {:.1f} GB of this rank written after {:.0f} s", state_.step,
                 static_cast<double>(written_bytes_) / 1e9, static_cast<double>(own_bytes_) / 1e9,
                 seconds_since(began_));
  const at::Tensor busy = at::full({1}, static_cast<int64_t>(is_busy()), at::kLong);
  world_.all_reduce(busy, Reduction::max).wait();
  return busy.item<int64_t>() != 0;
}

// The thread's, on every rank.
void CheckpointWriter::write_own_file(PlannedFile& planned) {
  if (!planned.places.empty()) {
    File file = create_safetensors(aside_ / planned.name, planned.header);
    for (const auto& [piece, offset] : planned.places) {
      if (given_up_) throw std::runtime_error("the save was given up");
      const at::Tensor block = lent_.next();
      const std::span<const std::byte> bytes = memory_of(block);
      piece->hashes.push_back(XXH3_64bits(bytes.data(), bytes.size()));
      file.write(offset, bytes);
      written_bytes_ += static_cast<int64_t>(bytes.size());
    }
    lent_.end();  // training need not wait for the disk
    file.flush();
    planned.part.files.emplace(planned.name, planned.header.file_bytes());
  }
  contribution_ = contribution_text(planned.part);
}

// The thread's, on rank 0, when all files are on the disk: the checkpoint gets its manifest, then its name.
void CheckpointWriter::publish(const std::vector<std::string>& contributions) {
  Manifest manifest{{}, state_, hash_block_bytes_, {}, {}};
  for (const std::string& contribution : contributions) add_contribution(manifest, contribution);
  const std::optional<std::string> flaw = flaw_of(manifest);
  check_invariant(!flaw, "the slices of all ranks make a whole checkpoint: {}", flaw.value_or(""));
  all_bytes_ = 0;
  for (const auto& [file, bytes] : manifest.files) all_bytes_ += static_cast<int64_t>(bytes);
  const std::string name = checkpoint_name(state_.step);
  write_file_atomically(aside_ / manifest_file_name, manifest_text(manifest));
  replace_folder(aside_, folder_ / name);
  set_latest(folder_, name);
  seconds_ = seconds_since(began_);
  if (!retention_) return;
  try {
    prune_checkpoints(folder_, *retention_);
  } catch (const std::exception& error) {
    spdlog::warn("an older checkpoint in {} was not removed: {}", folder_.string(), error.what());
  }
}

// Ends this rank's thread and removes what it wrote. Ranks that still write into the folder find it gone.
void CheckpointWriter::abandon() noexcept {
  given_up_ = true;
  if (work_.valid()) work_.wait();
  work_ = {};
  lent_.end();
  given_up_ = false;
  phase_ = Phase::idle;
  std::error_code ignored;
  if (world_.rank() == 0 && !aside_.empty()) std::filesystem::remove_all(aside_, ignored);
  aside_.clear();
}

std::filesystem::path save_checkpoint(const std::filesystem::path& folder, const CheckpointState& state,
                                      std::span<const TensorSlice> slices, Communicator& world,
                                      uint64_t hash_block_bytes) {
  CheckpointWriter writer(folder, world, std::nullopt, hash_block_bytes);
  writer.begin(state, slices);
  return writer.finish().path;
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
