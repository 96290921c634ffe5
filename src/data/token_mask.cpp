#include "data/token_mask.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <system_error>

#include "base/error.h"
#include "data/spread_blocks.h"

namespace conclave {
namespace {

constexpr std::string_view magic = "CNCLMASK";
constexpr uint64_t version_at = 8;
constexpr uint64_t tokens_at = 16;
constexpr uint64_t trained_at = 24;
constexpr uint64_t checksum_at = 32;
constexpr uint64_t header_bytes = 40;

MappedFile open_mask(const std::filesystem::path& path) {
  try {
    return MappedFile(path);
  } catch (const std::system_error& error) {
    user_error(
        "{}.\n       The .idx beside it says (version 2) that the set has a mask, and without it the loss would be of "
        "other tokens. Copy it, too, or make the set again: conclave data build --chats.",
        error.what());
  }
}

// Of the polynomial 0xedb88320, as zlib's crc32 (RFC 1952, section 8).
class Crc32 {
 public:
  void add(std::span<const std::byte> bytes) {
    static constexpr std::array<uint32_t, 256> table = [] {
      std::array<uint32_t, 256> values{};
      for (uint32_t n = 0; n < 256; ++n) {
        uint32_t value = n;
        for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? 0xedb88320u ^ (value >> 1) : value >> 1;
        values[n] = value;
      }
      return values;
    }();
    for (const std::byte byte : bytes)
      value_ = table[(value_ ^ std::to_integer<uint32_t>(byte)) & 0xff] ^ (value_ >> 8);
  }
  uint64_t value() const { return ~value_; }

 private:
  uint32_t value_ = ~uint32_t{0};
};

uint64_t checksum_of(const MappedFile& index, const MappedFile& bin) {
  Crc32 crc;
  crc.add(index.bytes());
  const auto bin_bytes = static_cast<uint64_t>(bin.size());
  crc.add(std::as_bytes(std::span(&bin_bytes, 1)));
  for_spread_blocks(bin.bytes(), [&](std::span<const std::byte> block) { crc.add(block); });
  return crc.value();
}

template <class... Args>
[[noreturn]] void refuse(const MappedFile& file, uint64_t offset, fmt::format_string<Args...> format, Args&&... args) {
  user_error("{}, byte {}: {}", file.path().string(), offset, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace

TokenMask::TokenMask(const std::filesystem::path& file, const MappedFile& index, const MappedFile& bin, int64_t tokens)
    : file_(open_mask(file)), tokens_(tokens) {
  const auto bytes = file_.bytes();
  const auto value_at = [&](uint64_t offset) {
    uint64_t value;
    std::memcpy(&value, bytes.data() + offset, sizeof(value));
    return value;
  };
  if (bytes.size() < header_bytes)
    refuse(file_, bytes.size(), "the file ends here, expected a header of {} bytes. It is truncated.", header_bytes);
  if (std::memcmp(bytes.data(), magic.data(), magic.size()) != 0)
    refuse(file_, 0, "expected \"{}\". This is no mask of a token file.", magic);
  if (value_at(version_at) != 1) refuse(file_, version_at, "found version {}, expected 1.", value_at(version_at));
  if (value_at(tokens_at) != static_cast<uint64_t>(tokens))
    refuse(file_, tokens_at, "found {} tokens, but the set has {}. The mask is of another set.", value_at(tokens_at),
           tokens);
  if (bytes.size() - header_bytes != static_cast<uint64_t>(tokens))
    refuse(file_, bytes.size(),
           "found a file of {} bytes, expected {}, a byte for each token. It is truncated or damaged.", bytes.size(),
           header_bytes + static_cast<uint64_t>(tokens));
  if (const uint64_t checksum = checksum_of(index, bin); checksum != value_at(checksum_at))
    refuse(
        file_, checksum_at,
        "found the checksum {:08x}, but the .bin and .idx have {:08x}. The mask is of other files, or one of them is "
        "damaged: make the set again.",
        value_at(checksum_at), checksum);
  const uint64_t trained = value_at(trained_at);
  if (trained == 0 || trained > static_cast<uint64_t>(tokens))
    refuse(file_, trained_at, "found {} tokens that are trained on, expected 1 to {}.", trained, tokens);
  trained_ = static_cast<int64_t>(trained);
}

std::span<const std::byte> TokenMask::at(int64_t first, int64_t count) const {
  check_invariant(first >= 0 && count >= 0 && count <= tokens_ && first <= tokens_ - count,
                  "mask of tokens [{}, {} + {}) of {}", first, first, count, tokens_);
  const auto bytes = file_.bytes().subspan(header_bytes + static_cast<uint64_t>(first), static_cast<uint64_t>(count));
  uint8_t highest = 0;
  for (const std::byte byte : bytes) highest = std::max(highest, std::to_integer<uint8_t>(byte));
  if (highest > 1) {
    const auto bad = std::find_if(bytes.begin(), bytes.end(), [](std::byte byte) { return byte > std::byte{1}; });
    const auto place = static_cast<uint64_t>(bad - bytes.begin()) + static_cast<uint64_t>(first);
    refuse(file_, header_bytes + place, "found {}, expected 0 or 1 (token {} of the set). It is damaged.",
           std::to_integer<int>(*bad), place);
  }
  return bytes;
}

void TokenMask::read(int64_t first, std::span<uint8_t> out) const {
  const auto bytes = at(first, static_cast<int64_t>(out.size()));
  if (!bytes.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
}

int64_t TokenMask::count(int64_t first, int64_t count) const {
  int64_t ones = 0;
  for (const std::byte byte : at(first, count)) ones += std::to_integer<int64_t>(byte);
  return ones;
}

void TokenMask::check() const {
  const int64_t found = count(0, tokens_);
  if (found != trained_)
    refuse(file_, trained_at, "found {} tokens that are trained on, but {} of its bytes are 1. It is damaged.",
           trained_, found);
}

}  // namespace conclave
