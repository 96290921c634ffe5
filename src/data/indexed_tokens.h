// A set of tokenized documents as one stream of tokens: Megatron's `.bin`/`.idx` pair, read through mmap.
//
//   .idx (little-endian): "MMIDIDX\0\0", u64 version = 1 (2: the set has a mask), u8 token type, u64 sequences, u64
//   boundaries,
//                         i32[sequences] lengths in tokens, i64[sequences] byte offsets into the .bin, i64[boundaries]
//                         document boundaries
//   .bin: the tokens of all sequences, one after the other; a document is one or more consecutive sequences
//
// Invariant: once constructed, every rule of the format holds for the whole of both files, so that no read can leave
// them. Token ids are checked when they are read (`read`), because a scan of everything before the first step would
// cost minutes on a large set.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <span>
#include <vector>

#include "data/mapped_file.h"
#include "data/token_mask.h"
#include "data/token_type.h"

namespace conclave {

class IndexedTokens {
 public:
  static constexpr int64_t any_vocabulary = std::numeric_limits<int64_t>::max();

  // `prefix`: the path without ".bin" or ".idx"; with either it is accepted too. `vocab_size`: `read` refuses ids >=
  // it, and negative ones. UserError, naming file, byte offset, what was found and what is expected: a missing,
  // truncated, foreign, inconsistent or empty file, a mask that is not the set's. Cost: reads the whole .idx (12 bytes
  // a sequence) and nothing of the .bin.
  explicit IndexedTokens(const std::filesystem::path& prefix, int64_t vocab_size = any_vocabulary);

  const std::filesystem::path& prefix() const { return prefix_; }
  TokenType type() const { return type_; }
  int64_t tokens() const { return tokens_; }  // at least 1
  int64_t sequences() const { return sequences_; }
  int64_t documents() const { return boundaries_ - 1; }
  int64_t vocab_size() const { return vocab_size_; }

  // Position in the stream of the first token of a sequence or document; the one past the last is tokens().
  int64_t first_token_of_sequence(int64_t sequence) const;
  int64_t first_token_of_document(int64_t document) const;
  // The document that holds a token of the stream.
  int64_t document_of_token(int64_t token) const;

  // Those of tokens [first_token, first_token + count) of the stream with which a document begins.
  std::vector<int64_t> document_begins(int64_t first_token, int64_t count) const;

  // Tokens [first_token, first_token + out.size()) of the stream, which must exist. UserError if an id is negative or
  // >= vocab_size: names the position, the document and the file offset; `out` is then not to be used.
  void read(int64_t first_token, std::span<int64_t> out) const;

  // Scans the whole set and refuses ids outside [0, vocab_size) as `read` does. Measured on one core: 8 to 17 GB/s from
  // the page cache; else the speed of the disk.
  void check_vocabulary(int64_t vocab_size) const;
  // The highest id of the set, by a scan of the same cost. Negative ids are not looked for.
  int64_t highest_token() const;

  // Null: all tokens are trained on.
  const TokenMask* mask() const { return mask_ ? &*mask_ : nullptr; }

  const MappedFile& index_file() const { return index_; }
  const MappedFile& token_file() const { return bin_; }

 private:
  void read_header();
  void check_sequences();
  void check_documents();
  void open_mask();
  [[noreturn]] void refuse_token(int64_t token, int64_t id, int64_t vocab_size) const;

  std::filesystem::path prefix_;
  int64_t vocab_size_;
  MappedFile index_;
  MappedFile bin_;
  TokenType type_ = TokenType::u16;
  int64_t sequences_ = 0;
  int64_t boundaries_ = 0;
  int64_t tokens_ = 0;
  bool is_masked_ = false;
  std::optional<TokenMask> mask_;
};

}  // namespace conclave
