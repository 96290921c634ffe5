// Writes `.bin`/`.idx` pairs for the tests, byte by byte from the description of the format: independent of the
// reader's code.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

namespace conclave {

// A folder of its own for each test, removed at its end.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "conclave-data-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("no scratch folder " + name);
    path_ = name;
  }
  ~ScratchFolder() { std::filesystem::remove_all(path_); }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// The least significant `bytes` bytes of value, lowest first.
inline void append_little_endian(std::string& text, uint64_t value, int bytes) {
  for (int j = 0; j < bytes; ++j) text.push_back(static_cast<char>((value >> (8 * j)) & 0xff));
}

// CRC-32 by its definition (RFC 1952, section 8): a division of polynomials, bit by bit.
inline uint64_t crc32_bit_by_bit(const std::string& text) {
  uint32_t rest = 0xffffffff;
  for (const char letter : text) {
    rest ^= static_cast<uint8_t>(letter);
    for (int bit = 0; bit < 8; ++bit) rest = (rest >> 1) ^ ((rest & 1) != 0 ? 0xedb88320 : 0);
  }
  return rest ^ 0xffffffff;
}

// What goes into the two files. The defaults are a well-formed set; a test changes one field to break one rule.
struct SetOnDisk {
  std::string magic = std::string("MMIDIDX\0\0", 9);
  uint64_t version = 1;
  int type = 8;  // u16
  int token_bytes = 2;
  std::vector<int64_t> tokens;
  std::vector<int64_t> lengths;     // of the sequences
  std::vector<int64_t> offsets;     // bytes
  std::vector<int64_t> boundaries;  // in sequences
  uint64_t sequences = 0;           // as the header says
  uint64_t boundary_count = 0;      // as the header says
  std::string behind_index;         // bytes behind the end
  std::string behind_bin;

  // A set of documents of one sequence each.
  static SetOnDisk of(const std::vector<std::vector<int64_t>>& documents, int type = 8, int token_bytes = 2) {
    SetOnDisk set;
    set.type = type;
    set.token_bytes = token_bytes;
    set.boundaries.push_back(0);
    for (const auto& document : documents) {
      set.offsets.push_back(static_cast<int64_t>(set.tokens.size()) * token_bytes);
      set.lengths.push_back(static_cast<int64_t>(document.size()));
      set.boundaries.push_back(static_cast<int64_t>(set.lengths.size()));
      set.tokens.insert(set.tokens.end(), document.begin(), document.end());
    }
    set.sequences = set.lengths.size();
    set.boundary_count = set.boundaries.size();
    return set;
  }

  std::string index() const {
    std::string text = magic;
    append_little_endian(text, version, 8);
    append_little_endian(text, static_cast<uint64_t>(type), 1);
    append_little_endian(text, sequences, 8);
    append_little_endian(text, boundary_count, 8);
    for (const int64_t length : lengths) append_little_endian(text, static_cast<uint64_t>(length), 4);
    for (const int64_t offset : offsets) append_little_endian(text, static_cast<uint64_t>(offset), 8);
    for (const int64_t boundary : boundaries) append_little_endian(text, static_cast<uint64_t>(boundary), 8);
    return text + behind_index;
  }

  std::string bin() const {
    std::string text;
    for (const int64_t token : tokens) append_little_endian(text, static_cast<uint64_t>(token), token_bytes);
    return text + behind_bin;
  }

  // The mask of one byte a token (0 or 1) with its header; `checksum` replaces that of the pair.
  std::string mask_file(const std::vector<uint8_t>& mask, std::optional<uint64_t> checksum = std::nullopt) const {
    std::string text = "CNCLMASK";
    append_little_endian(text, 1, 8);
    append_little_endian(text, tokens.size(), 8);
    append_little_endian(text, static_cast<uint64_t>(std::count(mask.begin(), mask.end(), 1)), 8);
    std::string pair = index();
    append_little_endian(pair, bin().size(), 8);
    append_little_endian(text, checksum.value_or(crc32_bit_by_bit(pair + bin())), 8);
    for (const uint8_t byte : mask) text.push_back(static_cast<char>(byte));
    return text;
  }

  // Of small sets, whose .bin is one block.
  std::filesystem::path write_masked(const std::filesystem::path& prefix, const std::vector<uint8_t>& mask) {
    version = 2;
    std::ofstream(prefix.string() + ".mask", std::ios::binary) << mask_file(mask);
    return write(prefix);
  }

  // Returns the prefix.
  std::filesystem::path write(const std::filesystem::path& prefix) const {
    std::ofstream(prefix.string() + ".idx", std::ios::binary) << index();
    std::ofstream(prefix.string() + ".bin", std::ios::binary) << bin();
    return prefix;
  }
};

}  // namespace conclave
