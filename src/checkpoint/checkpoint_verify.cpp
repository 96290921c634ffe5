#include "checkpoint/checkpoint_verify.h"

#include <xxhash.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/error.h"
#include "base/text_file.h"

namespace conclave {
namespace {

// A piece, with the tensor it is of.
struct StoredPiece {
  const std::string* tensor;
  const ManifestTensor* stored;
  const Piece* piece;

  uint64_t bytes() const { return static_cast<uint64_t>(piece->end - piece->begin) * bits_of(stored->dtype) / 8; }
};

// The pieces of each file, in the order in which they lie in it.
std::map<std::string, std::vector<StoredPiece>> pieces_by_file(const Manifest& manifest) {
  std::map<std::string, std::vector<StoredPiece>> by_file;
  for (const auto& [file, bytes] : manifest.files) by_file[file];
  for (const auto& [name, tensor] : manifest.tensors) {
    for (const Piece& piece : tensor.pieces) by_file.at(piece.file).push_back({&name, &tensor, &piece});
  }
  for (auto& [file, pieces] : by_file) {
    std::sort(pieces.begin(), pieces.end(),
              [](const StoredPiece& a, const StoredPiece& b) { return a.piece->offset < b.piece->offset; });
  }
  return by_file;
}

class Verifier {
 public:
  Verifier(const std::filesystem::path& checkpoint, const Manifest& manifest, const BytesDone& done,
           CheckpointVerdict& verdict)
      : checkpoint_(checkpoint), manifest_(manifest), done_(done), verdict_(verdict) {
    block_.resize(manifest.hash_block_bytes);
  }

  void check(const std::string& file, const std::vector<StoredPiece>& pieces) {
    try {
      const SafetensorsReader reader(checkpoint_ / file);
      if (reader.file().size() != manifest_.files.at(file)) {
        add(file, "", fmt::format("has {} bytes instead of {}", reader.file().size(), manifest_.files.at(file)));
        return;
      }
      for (const StoredPiece& piece : pieces) check_piece(file, reader, piece);
    } catch (const std::exception& error) {  // not there, not a safetensors file, unreadable
      add(file, "", error.what());
    }
  }

 private:
  void add(const std::string& file, const std::string& tensor, std::string reason) {
    verdict_.flaws.push_back({file, tensor, std::move(reason)});
  }

  void check_piece(const std::string& file, const SafetensorsReader& reader, const StoredPiece& stored) {
    const Piece& piece = *stored.piece;
    const StoredTensor* found = reader.find(piece_name(*stored.tensor, piece));
    if (found == nullptr || found->begin != piece.offset || found->end - found->begin != stored.bytes() ||
        found->dtype != stored.stored->dtype) {
      add(file, *stored.tensor, "is not where the manifest says: was the file exchanged?");
      return;
    }
    std::optional<size_t> first_bad;
    size_t bad = 0;
    for (size_t i = 0; i < piece.hashes.size(); ++i) {
      const uint64_t begin = i * manifest_.hash_block_bytes;
      const std::span<std::byte> block =
          std::span(block_).first(std::min(manifest_.hash_block_bytes, stored.bytes() - begin));
      reader.file().read(piece.offset + begin, block);
      verdict_.bytes += block.size();
      done_(block.size());
      if (XXH3_64bits(block.data(), block.size()) == piece.hashes[i]) continue;
      if (!first_bad) first_bad = i;
      ++bad;
    }
    if (!first_bad) return;
    const uint64_t begin = piece.offset + *first_bad * manifest_.hash_block_bytes;
    add(file, *stored.tensor,
        fmt::format("{} of {} blocks do not fit their hashes, the first at byte {}", bad, piece.hashes.size(), begin));
  }

  const std::filesystem::path& checkpoint_;
  const Manifest& manifest_;
  const BytesDone& done_;
  CheckpointVerdict& verdict_;
  std::vector<std::byte> block_;
};

}  // namespace

CheckpointVerdict verify_checkpoint(const std::filesystem::path& checkpoint, const BytesDone& done) {
  if (!std::filesystem::is_directory(checkpoint)) user_error("there is no checkpoint {}.", checkpoint.string());
  CheckpointVerdict verdict;
  Manifest manifest;
  try {
    const std::filesystem::path path = checkpoint / manifest_file_name;
    manifest = parse_manifest(read_text_file(path, most_manifest_bytes), path.string());
  } catch (const std::exception& error) {
    verdict.flaws.push_back({manifest_file_name, "", error.what()});
    return verdict;
  }
  verdict.tensors = manifest.tensors.size();
  verdict.files = manifest.files.size();
  Verifier verifier(checkpoint, manifest, done, verdict);
  for (const auto& [file, pieces] : pieces_by_file(manifest)) verifier.check(file, pieces);
  return verdict;
}

}  // namespace conclave
