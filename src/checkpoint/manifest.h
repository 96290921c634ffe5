// The table of contents of a resumable checkpoint, `manifest.json`: every tensor's shape and type, and the pieces, in
// files of the same folder, that its row-major flattened elements lie in. A manifest that was parsed is whole: the
// pieces of each tensor cover it once, and lie within the listed files.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checkpoint_state.h"
#include "checkpoint/safetensors_dtype.h"

namespace conclave {

inline constexpr const char* manifest_file_name = "manifest.json";
inline constexpr uint64_t most_manifest_bytes = 1 << 30;

// Elements [begin, end) of a tensor: in `file` from byte `offset` on, where they are the tensor called piece_name().
// Its bytes are hashed (XXH3, 64 bits) in blocks of the manifest's hash_block_bytes from its start, the last one
// shorter, so that a part of a piece is verified without reading all of it.
struct Piece {
  int64_t begin = 0;
  int64_t end = 0;
  std::string file;
  uint64_t offset = 0;
  std::vector<uint64_t> hashes;
};

struct ManifestTensor {
  StoredDtype dtype = StoredDtype::F32;
  std::vector<int64_t> shape;
  std::vector<Piece> pieces;  // ascending
};

struct Manifest {
  std::string identity;  // hash of its text, in which all data's hashes are; empty: it was not read
  CheckpointState state;
  uint64_t hash_block_bytes = 0;
  std::map<std::string, uint64_t> files;  // name to length in bytes
  std::map<std::string, ManifestTensor> tensors;
};

// The name in its file of a tensor's piece: "parameter/model.norm.weight[128:256]".
std::string piece_name(std::string_view tensor, const Piece& piece);

// JSON, with a hash over all of it, its identity: a manifest that was edited or damaged is noticed.
std::string manifest_text(const Manifest& manifest);
// DamagedCheckpoint naming `origin` (a file), the tensor and the reason, for everything that manifest_text does not
// write; another UserError when it was written in another version of the format.
Manifest parse_manifest(std::string_view text, const std::string& origin);

// Why a manifest is not whole; none: it is.
std::optional<std::string> flaw_of(const Manifest& manifest);

// What one rank adds to the manifest, as text that passes between ranks: `files` and `tensors` of `part`, whose pieces
// need not cover the tensors.
std::string contribution_text(const Manifest& part);
// Adds a rank's contribution. InvariantError when ranks disagree on a tensor or write the same file.
void add_contribution(Manifest& manifest, std::string_view text);

}  // namespace conclave
