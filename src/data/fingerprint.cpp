#include "data/fingerprint.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <memory>

#include "base/error.h"

namespace conclave {
namespace {

constexpr uint64_t blocks = 64;
constexpr uint64_t block_bytes = 64 * 1024;

}  // namespace

std::string fingerprint(const IndexedTokens& set) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  check_invariant(state != nullptr && XXH3_64bits_reset(state.get()) == XXH_OK, "no state of XXH3");
  const auto add = [&](const void* data, size_t size) { XXH3_64bits_update(state.get(), data, size); };

  const auto index = set.index_file().bytes();
  const auto bin = set.token_file().bytes();
  const uint64_t bin_bytes = bin.size();
  add(index.data(), index.size());
  add(&bin_bytes, sizeof(bin_bytes));
  if (bin_bytes <= blocks * block_bytes) {
    add(bin.data(), bin.size());
  } else {
    const uint64_t last_begin = bin_bytes - block_bytes;
    for (uint64_t b = 0; b < blocks; ++b) {
      // Whole steps, so that the product cannot overflow; the last block ends the file.
      const uint64_t begin = b + 1 == blocks ? last_begin : last_begin / (blocks - 1) * b;
      add(bin.data() + begin, block_bytes);
    }
  }
  return fmt::format("{:016x}", XXH3_64bits_digest(state.get()));
}

}  // namespace conclave
