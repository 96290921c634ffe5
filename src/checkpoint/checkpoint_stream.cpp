#include "checkpoint/checkpoint_stream.h"

#include <xxhash.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "base/atomic_file.h"
#include "base/error.h"
#include "checkpoint/safetensors_reader.h"
#include "checkpoint/safetensors_writer.h"

namespace conclave {

// The hash of a block that comes in parts.
class BlockHash {
 public:
  BlockHash() : state_(XXH3_createState()) { XXH3_64bits_reset(state_); }
  ~BlockHash() { XXH3_freeState(state_); }
  BlockHash(const BlockHash&) = delete;
  BlockHash& operator=(const BlockHash&) = delete;

  void add(std::span<const std::byte> bytes) { XXH3_64bits_update(state_, bytes.data(), bytes.size()); }
  uint64_t take() {
    const uint64_t hash = XXH3_64bits_digest(state_);
    XXH3_64bits_reset(state_);
    return hash;
  }

 private:
  XXH3_state_t* state_;
};

bool is_checkpoint_file(std::string_view name) {
  return name == manifest_file_name || name.ends_with(".safetensors");
}

CheckpointStream::CheckpointStream(const std::filesystem::path& checkpoint, CheckpointState state,
                                   const std::vector<SafetensorsHeader::Entry>& tensors, int64_t files,
                                   Overwrite overwrite, uint64_t hash_block_bytes)
    : folder_(checkpoint, overwrite, is_checkpoint_file), hash_(std::make_unique<BlockHash>()) {
  manifest_.state = std::move(state);
  manifest_.hash_block_bytes = hash_block_bytes;
  plan(tensors, files);
  folder_.create();
}

CheckpointStream::~CheckpointStream() {
  if (!finished_) folder_.discard();
}

// The bytes of all tensors, one after the other, are divided evenly over the files; where a cut falls into a tensor,
// before the element it falls on.
void CheckpointStream::plan(const std::vector<SafetensorsHeader::Entry>& tensors, int64_t files) {
  check_invariant(files >= 1, "a checkpoint of {} files", files);
  uint64_t total = 0;
  for (const auto& tensor : tensors) total += checked_numel(tensor.shape).value() * bits_of(tensor.dtype) / 8;
  int64_t file = 0;
  uint64_t tensor_begin = 0;  // in the bytes of all tensors
  for (const auto& tensor : tensors) {
    const uint64_t element_bytes = bits_of(tensor.dtype) / 8;
    const int64_t numel = checked_numel(tensor.shape).value();
    const auto [place, is_new] = manifest_.tensors.emplace(tensor.name, ManifestTensor{tensor.dtype, tensor.shape, {}});
    check_invariant(is_new, "tensor {} is written once", tensor.name);
    for (int64_t begin = 0; begin < numel;) {
      const auto file_end =
          static_cast<uint64_t>(static_cast<__uint128_t>(total) * static_cast<uint64_t>(file + 1) / files);
      const int64_t end =
          file + 1 == files ? numel : std::min(numel, static_cast<int64_t>((file_end - tensor_begin) / element_bytes));
      if (end <= begin) {
        ++file;
        continue;
      }
      std::vector<Piece>& pieces = place->second.pieces;
      pieces.push_back({begin, end, fmt::format("part-{:05}.safetensors", file), 0, {}});
      segments_.push_back({tensor.name, pieces.size() - 1, static_cast<uint64_t>(end - begin) * element_bytes});
      begin = end;
    }
    tensor_begin += static_cast<uint64_t>(numel) * element_bytes;
  }
}

void CheckpointStream::open_file(const std::string& name) {
  std::vector<SafetensorsHeader::Entry> entries;
  const auto in_this_file = [&](const Segment& segment) { return piece_of(segment).file == name; };
  for (size_t i = current_; i < segments_.size() && in_this_file(segments_[i]); ++i) {
    const Piece& piece = piece_of(segments_[i]);
    entries.push_back({piece_name(segments_[i].tensor, piece),
                       manifest_.tensors.at(segments_[i].tensor).dtype,
                       {piece.end - piece.begin}});
  }
  const SafetensorsHeader header = SafetensorsHeader::plan(std::move(entries));
  for (size_t i = current_; i < segments_.size() && in_this_file(segments_[i]); ++i) {
    Piece& piece = piece_of(segments_[i]);
    piece.offset = header.find(piece_name(segments_[i].tensor, piece))->begin;
  }
  file_.emplace(create_safetensors(folder_.aside() / name, header));
  manifest_.files.emplace(name, header.file_bytes());
}

void CheckpointStream::close_file() {
  if (!file_) return;
  file_->flush();
  file_.reset();
}

void CheckpointStream::append(const at::Tensor& elements) {
  std::span<const std::byte> bytes = memory_of(elements);
  while (!bytes.empty()) {
    check_invariant(current_ < segments_.size(), "{} bytes after the last tensor's end", bytes.size());
    const Segment& segment = segments_[current_];
    Piece& piece = piece_of(segment);
    check_invariant(scalar_type_of(manifest_.tensors.at(segment.tensor).dtype) == elements.scalar_type(),
                    "tensor {} is given as {}", segment.tensor, c10::toString(elements.scalar_type()));
    if (!file_) open_file(piece.file);
    const uint64_t in_block = done_ % manifest_.hash_block_bytes;
    const uint64_t count = std::min({bytes.size(), segment.bytes - done_, manifest_.hash_block_bytes - in_block});
    hash_->add(bytes.first(count));
    file_->write(piece.offset + done_, bytes.first(count));
    bytes = bytes.subspan(count);
    done_ += count;
    if (done_ == segment.bytes || done_ % manifest_.hash_block_bytes == 0) piece.hashes.push_back(hash_->take());
    if (done_ == segment.bytes) {
      done_ = 0;
      ++current_;
      if (current_ == segments_.size() || piece_of(segments_[current_]).file != piece.file) close_file();
    }
  }
}

void CheckpointStream::finish() {
  check_invariant(current_ == segments_.size(), "{} of {} pieces were written", current_, segments_.size());
  const std::optional<std::string> flaw = flaw_of(manifest_);
  check_invariant(!flaw, "what was written makes a whole checkpoint: {}", flaw.value_or(""));
  write_file_atomically(folder_.aside() / manifest_file_name, manifest_text(manifest_));
  folder_.publish();
  finished_ = true;
}

}  // namespace conclave
