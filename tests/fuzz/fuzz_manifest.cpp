// Any text as a manifest: refused as a user's mistake, or whole. The text is also taken as the content alone, with the
// hash that fits it: else nothing behind the hash would ever be reached. Oracle: a whole manifest says the same when it
// is written and read again.
#include <xxhash.h>

#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>

#include "base/error.h"
#include "checkpoint/manifest.h"

namespace {

void parse(const std::string& text) {
  using namespace conclave;
  try {
    const Manifest manifest = parse_manifest(text, "fuzz");
    if (flaw_of(manifest)) std::abort();
    const std::string written = manifest_text(manifest);
    if (manifest_text(parse_manifest(written, "again")) != written) std::abort();
  } catch (const UserError&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  parse(text);
  const nlohmann::json content = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (content.is_discarded()) return 0;
  std::string dumped;
  try {
    dumped = content.dump();
  } catch (const nlohmann::json::exception&) {
    return 0;
  }
  parse(fmt::format("{{\"xxh3\":\"{:016x}\",\"content\":{}}}", XXH3_64bits(dumped.data(), dumped.size()), dumped));
  return 0;
}
