#include "data/fingerprint.h"

#include <fmt/core.h>
#include <xxhash.h>

#include <memory>

#include "base/error.h"
#include "data/spread_blocks.h"

namespace conclave {

std::string fingerprint(const IndexedTokens& set) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
  check_invariant(state != nullptr && XXH3_64bits_reset(state.get()) == XXH_OK, "no state of XXH3");
  const auto add = [&](const void* data, size_t size) { XXH3_64bits_update(state.get(), data, size); };

  const auto index = set.index_file().bytes();
  const uint64_t bin_bytes = set.token_file().size();
  add(index.data(), index.size());
  add(&bin_bytes, sizeof(bin_bytes));
  const auto add_blocks = [&](const MappedFile& file) {
    for_spread_blocks(file.bytes(), [&](std::span<const std::byte> block) { add(block.data(), block.size()); });
  };
  add_blocks(set.token_file());
  if (const TokenMask* mask = set.mask()) add_blocks(mask->file());
  return fmt::format("{:016x}", XXH3_64bits_digest(state.get()));
}

std::string fingerprint(const Blend& blend) {
  if (blend.is_single()) return fingerprint(blend.stream(0).set());
  std::string sources;
  for (const BlendSource& source : blend.sources())
    sources += fmt::format("{} {}\n", fingerprint(source.stream->set()), source.weight);
  return fmt::format("{:016x}", XXH3_64bits(sources.data(), sources.size()));
}

}  // namespace conclave
