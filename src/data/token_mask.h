// Which tokens of a set are trained on, and so are targets of the loss: PREFIX.mask, beside a .idx of version 2.
//
//   .mask (little-endian): "CNCLMASK", u64 version = 1, u64 tokens, u64 tokens that are trained on, u64 CRC-32 of the
//                          pair, u8[tokens]: 1 for a token that is trained on, 0 for any other
//
// The CRC-32 (zlib's) is of the whole .idx, the length of the .bin as u64, and the spread blocks (spread_blocks.h) of
// the .bin. Invariant: once constructed, the mask is of the pair. Its bytes are checked when they are read.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "data/mapped_file.h"

namespace conclave {

class TokenMask {
 public:
  // UserError, naming file and byte: it is not there, foreign, truncated, of another pair, or of no trained token.
  TokenMask(const std::filesystem::path& file, const MappedFile& index, const MappedFile& bin, int64_t tokens);

  int64_t trained() const { return trained_; }  // at least 1

  // Of tokens [first, first + out.size()). UserError for a byte that is neither 0 nor 1.
  void read(int64_t first, std::span<uint8_t> out) const;
  // How many of tokens [first, first + count) are trained on.
  int64_t count(int64_t first, int64_t count) const;
  // Scans all of it: UserError when its bytes are not what its header says.
  void check() const;

  const MappedFile& file() const { return file_; }

 private:
  std::span<const std::byte> at(int64_t first, int64_t count) const;

  MappedFile file_;
  int64_t tokens_;
  int64_t trained_ = 0;
};

}  // namespace conclave
