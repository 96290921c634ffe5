#include "data/indexed_tokens.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>

#include "base/error.h"

namespace conclave {
namespace {

static_assert(std::endian::native == std::endian::little, "the files are little-endian and are read in place");

constexpr std::string_view magic{"MMIDIDX\0\0", 9};
constexpr uint64_t version_at = 9;
constexpr uint64_t type_at = 17;
constexpr uint64_t sequences_at = 18;
constexpr uint64_t boundaries_at = 26;
constexpr uint64_t header_bytes = 34;  // so the arrays behind it are not aligned: values are copied out

template <class T>
T value_at(std::span<const std::byte> bytes, uint64_t offset) {
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

template <class... Args>
[[noreturn]] void refuse(const MappedFile& file, uint64_t offset, fmt::format_string<Args...> format, Args&&... args) {
  user_error("{}, byte {}: {}", file.path().string(), offset, fmt::format(format, std::forward<Args>(args)...));
}

std::filesystem::path without_suffix(std::filesystem::path path) {
  if (path.extension() == ".bin" || path.extension() == ".idx") path.replace_extension();
  return path;
}

std::filesystem::path with_suffix(const std::filesystem::path& prefix, const char* suffix) {
  std::filesystem::path path = prefix;
  path += suffix;
  return path;
}

// A data file that cannot be opened is a user's mistake, told with the way to make one.
MappedFile open_data_file(const std::filesystem::path& path) {
  try {
    return MappedFile(path);
  } catch (const std::system_error& error) {
    user_error(
        "{}.\n       A data set is a pair PREFIX.bin and PREFIX.idx, given by its prefix. Make one with: "
        "conclave data build INPUT --tokenizer tokenizer.json --output PREFIX",
        error.what());
  }
}

}  // namespace

IndexedTokens::IndexedTokens(const std::filesystem::path& prefix, int64_t vocab_size)
    : prefix_(without_suffix(prefix)),
      vocab_size_(vocab_size),
      index_(open_data_file(with_suffix(prefix_, ".idx"))),
      bin_(open_data_file(with_suffix(prefix_, ".bin"))) {
  read_header();
  check_sequences();
  check_documents();
  open_mask();
}

// A mask that is there is used, and one that is not used is refused: the loss is never of other tokens than was meant.
void IndexedTokens::open_mask() {
  const std::filesystem::path file = with_suffix(prefix_, ".mask");
  std::error_code unknown;
  if (is_masked_) {
    mask_.emplace(file, index_, bin_, tokens_);
  } else if (std::filesystem::exists(file, unknown)) {
    user_error(
        "{} is there, but {} says (version 1) that the set has no mask.\n       Move it away if it is of an older set, "
        "or make the set again.",
        file.string(), index_.path().string());
  }
}

void IndexedTokens::read_header() {
  const auto bytes = index_.bytes();
  const size_t common = std::min(magic.size(), bytes.size());
  for (size_t j = 0; j < common; ++j) {
    const auto found = std::to_integer<unsigned>(bytes[j]);
    const auto expected = static_cast<unsigned char>(magic[j]);
    if (found != expected)
      refuse(index_, j,
             R"(found 0x{:02x}, expected 0x{:02x} of "MMIDIDX\0\0". This is no .idx file of Megatron's format.)", found,
             expected);
  }
  if (bytes.size() < header_bytes)
    refuse(index_, bytes.size(), "the file ends here, expected a header of {} bytes. It is truncated.", header_bytes);
  const auto version = value_at<uint64_t>(bytes, version_at);
  if (version != 1 && version != 2)
    refuse(index_, version_at, "found version {}, expected 1, or 2 for a set with a mask.", version);
  is_masked_ = version == 2;
  const auto code = value_at<uint8_t>(bytes, type_at);
  if (code == 6 || code == 7)
    refuse(index_, type_at,
           "found type {} (floating point), expected an integer type: 1 u8, 2 i8, 3 i16, 4 i32, 5 i64 or 8 u16.", code);
  if (code == 0 || code > 8)
    refuse(index_, type_at, "found type {}, expected 1 u8, 2 i8, 3 i16, 4 i32, 5 i64 or 8 u16.", code);
  type_ = static_cast<TokenType>(code);

  // The counts are compared by division first, so that a hostile count cannot overflow.
  const uint64_t room = bytes.size() - header_bytes;
  const auto sequences = value_at<uint64_t>(bytes, sequences_at);
  const auto boundaries = value_at<uint64_t>(bytes, boundaries_at);
  if (sequences == 0) refuse(index_, sequences_at, "found 0 sequences, expected at least 1. The data set is empty.");
  if (sequences > room / 12)
    refuse(index_, sequences_at,
           "found {} sequences, which need {} bytes each, expected at most {} in a file of {} bytes. It is truncated "
           "or damaged.",
           sequences, 12, room / 12, bytes.size());
  if (boundaries < 2)
    refuse(index_, boundaries_at, "found {} document boundaries, expected at least 2 (0 and the number of sequences).",
           boundaries);
  const uint64_t left = room - 12 * sequences;
  if (boundaries > left / 8)
    refuse(index_, boundaries_at,
           "found {} document boundaries, expected at most {} in a file of {} bytes with {} sequences. It is truncated "
           "or damaged.",
           boundaries, left / 8, bytes.size(), sequences);
  const uint64_t expected_size = header_bytes + 12 * sequences + 8 * boundaries;
  if (bytes.size() != expected_size)
    refuse(index_, expected_size,
           "found {} more bytes, expected the end of the file ({} sequences, {} document boundaries).",
           bytes.size() - expected_size, sequences, boundaries);
  sequences_ = static_cast<int64_t>(sequences);
  boundaries_ = static_cast<int64_t>(boundaries);
}

void IndexedTokens::check_sequences() {
  const auto bytes = index_.bytes();
  const int64_t token_bytes = bytes_of(type_);
  const auto bin_bytes = static_cast<int64_t>(bin_.size());
  int64_t end =
      0;  // of the sequences before, in bytes of the .bin; never above bin_bytes, so that sums do not overflow
  for (int64_t s = 0; s < sequences_; ++s) {
    const uint64_t length_at = header_bytes + 4 * static_cast<uint64_t>(s);
    const uint64_t offset_at = header_bytes + 4 * static_cast<uint64_t>(sequences_) + 8 * static_cast<uint64_t>(s);
    const int64_t length = value_at<int32_t>(bytes, length_at);
    const auto offset = value_at<int64_t>(bytes, offset_at);
    if (length < 0) refuse(index_, length_at, "sequence {}: found length {}, expected 0 or more.", s, length);
    if (offset % token_bytes != 0)
      refuse(index_, offset_at, "sequence {}: found offset {}, expected a multiple of the token size {}.", s, offset,
             token_bytes);
    if (offset != end)
      refuse(index_, offset_at, "sequence {}: found offset {}, expected {}, where the sequence before it ends.", s,
             offset, end);
    if (length * token_bytes > bin_bytes - end)
      refuse(
          bin_, static_cast<uint64_t>(bin_bytes),
          "the file ends here, but sequence {} takes bytes {} to {}. It is truncated, or the .idx is of another file.",
          s, end, end + length * token_bytes);
    end += length * token_bytes;
  }
  if (end != bin_bytes)
    refuse(
        bin_, static_cast<uint64_t>(end),
        "found {} more bytes, expected the end of the file, where the last sequence ends. The .idx is of another file.",
        bin_bytes - end);
  if (end == 0) refuse(bin_, 0, "found no token, expected at least 1. The data set is empty.");
  tokens_ = end / token_bytes;
}

void IndexedTokens::check_documents() {
  const auto bytes = index_.bytes();
  int64_t previous = 0;
  for (int64_t d = 0; d < boundaries_; ++d) {
    const uint64_t at = header_bytes + 12 * static_cast<uint64_t>(sequences_) + 8 * static_cast<uint64_t>(d);
    const auto boundary = value_at<int64_t>(bytes, at);
    if (d == 0 && boundary != 0) refuse(index_, at, "found first document boundary {}, expected 0.", boundary);
    if (boundary < previous)
      refuse(index_, at, "found document boundary {} = {}, expected {} or more, as the one before it.", d, boundary,
             previous);
    if (boundary > sequences_)
      refuse(index_, at, "found document boundary {} = {}, expected at most {}, the number of sequences.", d, boundary,
             sequences_);
    if (d + 1 == boundaries_ && boundary != sequences_)
      refuse(index_, at, "found last document boundary {}, expected {}, the number of sequences.", boundary,
             sequences_);
    previous = boundary;
  }
}

int64_t IndexedTokens::first_token_of_sequence(int64_t sequence) const {
  check_invariant(sequence >= 0 && sequence <= sequences_, "sequence {} of {}", sequence, sequences_);
  if (sequence == sequences_) return tokens_;
  const uint64_t at = header_bytes + 4 * static_cast<uint64_t>(sequences_) + 8 * static_cast<uint64_t>(sequence);
  return value_at<int64_t>(index_.bytes(), at) / bytes_of(type_);
}

int64_t IndexedTokens::first_token_of_document(int64_t document) const {
  check_invariant(document >= 0 && document < boundaries_, "document {} of {}", document, documents());
  const uint64_t at = header_bytes + 12 * static_cast<uint64_t>(sequences_) + 8 * static_cast<uint64_t>(document);
  return first_token_of_sequence(value_at<int64_t>(index_.bytes(), at));
}

int64_t IndexedTokens::document_of_token(int64_t token) const {
  check_invariant(token >= 0 && token < tokens_, "token {} of {}", token, tokens_);
  int64_t low = 0, high = documents();  // first_token_of_document(low) <= token < first_token_of_document(high)
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (first_token_of_document(middle) <= token ? low : high) = middle;
  }
  return low;
}

std::vector<int64_t> IndexedTokens::document_begins(int64_t first_token, int64_t count) const {
  std::vector<int64_t> begins;
  if (count <= 0) return begins;
  for (int64_t document = document_of_token(first_token); document < documents(); ++document) {
    const int64_t begin = first_token_of_document(document);
    if (begin >= first_token + count) break;
    const bool is_empty = first_token_of_document(document + 1) == begin;
    if (begin >= first_token && !is_empty) begins.push_back(begin);
  }
  return begins;
}

void IndexedTokens::refuse_token(int64_t token, int64_t id, int64_t vocab_size) const {
  const int64_t document = document_of_token(token);
  refuse(bin_, static_cast<uint64_t>(token * bytes_of(type_)),
         "found token id {}, expected 0 to {} (vocab_size {}). It is token {} of the set, token {} of document {}.\n   "
         "    The model's "
         "vocab_size must cover the tokenizer that the data was made with.",
         id, vocab_size - 1, vocab_size, token, token - first_token_of_document(document), document);
}

void IndexedTokens::read(int64_t first_token, std::span<int64_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  check_invariant(first_token >= 0 && count <= tokens_ && first_token <= tokens_ - count, "tokens [{}, {} + {}) of {}",
                  first_token, first_token, count, tokens_);
  uint64_t highest = 0;  // as unsigned, so that a negative id is high too
  with_token_type(type_, [&](auto zero) {
    using Token = decltype(zero);
    const std::byte* source = bin_.bytes().data() + first_token * static_cast<int64_t>(sizeof(Token));
    for (int64_t j = 0; j < count; ++j) {
      Token token;
      std::memcpy(&token, source + j * static_cast<int64_t>(sizeof(Token)), sizeof(Token));
      out[j] = static_cast<int64_t>(token);  // NOLINT(bugprone-signed-char-misuse): int8 is a type of the format
      highest = std::max(highest, static_cast<uint64_t>(out[j]));
    }
  });
  if (highest < static_cast<uint64_t>(vocab_size_)) return;
  for (int64_t j = 0; j < count; ++j)
    if (out[j] < 0 || out[j] >= vocab_size_) refuse_token(first_token + j, out[j], vocab_size_);
}

void IndexedTokens::check_vocabulary(int64_t vocab_size) const {
  with_token_type(type_, [&](auto zero) {
    using Token = decltype(zero);
    using Unsigned = std::make_unsigned_t<Token>;
    const auto* all = reinterpret_cast<const Token*>(bin_.bytes().data());  // aligned: a mapping begins on a page
    constexpr int64_t block = 1 << 16;
    for (int64_t begin = 0; begin < tokens_; begin += block) {
      const int64_t end = std::min(begin + block, tokens_);
      Unsigned highest = 0;  // as unsigned, so that a negative id is high too
      for (int64_t t = begin; t < end; ++t) highest = std::max(highest, static_cast<Unsigned>(all[t]));
      // A negative id of a narrow type may be below vocab_size as unsigned; it is never below half the type's range.
      const bool maybe_negative =
          std::is_signed_v<Token> && highest > static_cast<Unsigned>(std::numeric_limits<Token>::max());
      if (!maybe_negative && static_cast<uint64_t>(highest) < static_cast<uint64_t>(vocab_size)) continue;
      for (int64_t t = begin; t < end; ++t)
        if (static_cast<int64_t>(all[t]) < 0 || static_cast<int64_t>(all[t]) >= vocab_size)
          refuse_token(t, static_cast<int64_t>(all[t]), vocab_size);
    }
  });
}

int64_t IndexedTokens::highest_token() const {
  return with_token_type(type_, [&](auto zero) -> int64_t {
    using Token = decltype(zero);
    const auto* all = reinterpret_cast<const Token*>(bin_.bytes().data());
    return static_cast<int64_t>(*std::max_element(all, all + tokens_));
  });
}

}  // namespace conclave
