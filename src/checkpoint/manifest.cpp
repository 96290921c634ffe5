#include "checkpoint/manifest.h"

#include <xxhash.h>

#include <algorithm>
#include <cstdlib>

#include "base/strict_json.h"
#include "checkpoint/damaged_checkpoint.h"
#include "checkpoint/manifest_members.h"
#include "checkpoint/safetensors_header.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr const char* format_name = "conclave checkpoint";
constexpr int64_t format_version = 3;
constexpr int64_t oldest_format_version = 2;  // without `tokens` and `resumed_from`
constexpr size_t state_members = 13;

std::string hex(uint64_t hash) {
  return fmt::format("{:016x}", hash);
}
uint64_t hash_of(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}

json to_json(const ManifestTensor& tensor) {
  json pieces = json::array();
  for (const Piece& piece : tensor.pieces) {
    json hashes = json::array();
    for (uint64_t hash : piece.hashes) hashes.push_back(hex(hash));
    pieces.push_back({{"begin", piece.begin},
                      {"end", piece.end},
                      {"file", piece.file},
                      {"offset", piece.offset},
                      {"xxh3", std::move(hashes)}});
  }
  return {{"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}, {"pieces", std::move(pieces)}};
}

ManifestTensor tensor_from(const json& object, const std::string& name, const std::string& origin) {
  const Members members(object, fmt::format("tensor \"{}\"", name), origin, 3);
  ManifestTensor tensor;
  const std::string dtype = members.text("dtype");
  if (!stored_dtype_named(dtype)) members.refuse(fmt::format("has the unknown type \"{}\"", dtype));
  tensor.dtype = *stored_dtype_named(dtype);
  for (const json& size : members.array("shape")) tensor.shape.push_back(members.to_signed(size, "shape"));
  for (const json& value : members.array("pieces")) {
    const Members fields(value, fmt::format("a piece of tensor \"{}\"", name), origin, 5);
    Piece piece{
        fields.number("begin"), fields.number("end"), fields.text("file"), fields.unsigned_number("offset"), {}};
    for (const json& hash : fields.array("xxh3")) piece.hashes.push_back(fields.to_hash(hash));
    tensor.pieces.push_back(std::move(piece));
  }
  return tensor;
}

json to_json(const CheckpointState& state) {
  return {{"step", state.step},
          {"samples", state.samples},
          {"tokens", state.tokens},
          {"seed", state.seed},
          {"updates", state.updates},
          {"skipped_in_a_row", state.skipped_in_a_row},
          {"data_fingerprint", state.data_fingerprint},
          {"resumed_from", state.resumed_from},
          {"job", state.job},
          {"model_config", state.model_config},
          {"layout", state.layout},
          {"versions", state.versions},
          {"values", state.values}};
}

// A run of version 2 never changed its sequence length without counting anew.
int64_t tokens_of_version_2(const CheckpointState& state) {
  const auto found = state.job.find("data.sequence_length");
  return found == state.job.end() ? 0 : state.samples * std::strtoll(found->second.c_str(), nullptr, 10);
}

CheckpointState state_from(const json& object, const std::string& origin, int64_t version) {
  const bool is_older = version == oldest_format_version;
  const Members members(object, "its state", origin, is_older ? state_members - 2 : state_members);
  CheckpointState state;
  state.step = members.number("step");
  state.samples = members.number("samples");
  state.seed = members.unsigned_number("seed");
  state.updates = members.number("updates");
  state.skipped_in_a_row = members.number("skipped_in_a_row");
  state.data_fingerprint = members.text("data_fingerprint");
  state.job = members.texts("job");
  state.tokens = is_older ? tokens_of_version_2(state) : members.number("tokens");
  if (!is_older) state.resumed_from = members.text("resumed_from");
  state.model_config = members.text("model_config");
  state.versions = members.texts("versions");
  for (const auto& [axis, degree] : members.object("layout").items())
    state.layout.emplace(axis, members.to_signed(degree, "layout"));
  for (const auto& [name, values] : members.object("values").items()) {
    if (!values.is_array()) members.refuse(fmt::format("has values of \"{}\" that are not an array", name));
    for (const json& value : values) {
      if (!value.is_number()) members.refuse(fmt::format("has {} as a value of \"{}\"", value.dump(), name));
      state.values[name].push_back(value.get<double>());
    }
    state.values.try_emplace(name);
  }
  return state;
}

// `files` and `tensors`, the members that ranks contribute to.
json contents_to_json(const Manifest& manifest) {
  json tensors = json::object();
  for (const auto& [name, tensor] : manifest.tensors) tensors[name] = to_json(tensor);
  return {{"files", manifest.files}, {"tensors", std::move(tensors)}};
}

void read_contents(const Members& members, const std::string& origin, Manifest& manifest) {
  for (const auto& [name, bytes] : members.object("files").items())
    manifest.files.emplace(name, members.to_signed(bytes, "files"));
  for (const auto& [name, tensor] : members.object("tensors").items())
    manifest.tensors.emplace(name, tensor_from(tensor, name, origin));
}

std::optional<std::string> flaw_of(const Manifest& manifest, const std::string& name, const ManifestTensor& tensor) {
  const auto flaw = [&](const std::string& reason) { return fmt::format("tensor \"{}\" {}", name, reason); };
  const std::optional<int64_t> numel = checked_numel(tensor.shape);
  uint64_t bits = 0;
  if (!numel || __builtin_mul_overflow(static_cast<uint64_t>(*numel), bits_of(tensor.dtype), &bits))
    return flaw("has a shape that overflows");
  if (bits_of(tensor.dtype) < 8) return flaw("has a type narrower than a byte");
  const uint64_t element_bytes = bits_of(tensor.dtype) / 8;
  int64_t covered = 0;
  for (const Piece& piece : tensor.pieces) {
    if (piece.begin != covered || piece.end <= piece.begin || piece.end > *numel) {
      return flaw(fmt::format(
          "of {} elements has a piece [{}, {}) after elements up to {}: pieces must cover it without gap or overlap",
          *numel, piece.begin, piece.end, covered));
    }
    covered = piece.end;
    const auto file = manifest.files.find(piece.file);
    if (file == manifest.files.end()) return flaw(fmt::format("has a piece in {}, which is not listed", piece.file));
    const uint64_t bytes = static_cast<uint64_t>(piece.end - piece.begin) * element_bytes;
    if (bytes > file->second || piece.offset > file->second - bytes) {
      return flaw(fmt::format("has a piece of {} bytes at byte {} of {}, which has {} bytes", bytes, piece.offset,
                              piece.file, file->second));
    }
    const uint64_t blocks = (bytes - 1) / manifest.hash_block_bytes + 1;
    if (piece.hashes.size() != blocks)
      return flaw(fmt::format("has {} hashes for a piece of {} blocks", piece.hashes.size(), blocks));
  }
  if (covered != *numel) return flaw(fmt::format("of {} elements has pieces only up to element {}", *numel, covered));
  return std::nullopt;
}

}  // namespace

std::string piece_name(std::string_view tensor, const Piece& piece) {
  return fmt::format("{}[{}:{}]", tensor, piece.begin, piece.end);
}

std::optional<std::string> flaw_of(const Manifest& manifest) {
  // 64: the widest element, so that no element is divided between two blocks. 64 MiB bounds what a reader must
  // allocate.
  if (manifest.hash_block_bytes == 0 || manifest.hash_block_bytes % 64 != 0 || manifest.hash_block_bytes > (64 << 20)) {
    return fmt::format("hash_block_bytes is {}, not a multiple of 64 up to 64 MiB", manifest.hash_block_bytes);
  }
  for (const auto& [file, bytes] : manifest.files) {
    if (!file.ends_with(".safetensors") || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      return fmt::format("\"{}\" is not the name of a safetensors file", file);
    }
  }
  for (const auto& [name, tensor] : manifest.tensors) {
    if (auto flaw = flaw_of(manifest, name, tensor)) return flaw;
  }
  return std::nullopt;
}

std::string manifest_text(const Manifest& manifest) {
  json content = contents_to_json(manifest);
  content["format"] = format_name;
  content["version"] = format_version;
  content["hash_block_bytes"] = manifest.hash_block_bytes;
  content["state"] = to_json(manifest.state);
  const std::string text = content.dump();
  return fmt::format("{{\"xxh3\":\"{}\",\"content\":{}}}\n", hex(hash_of(text)), text);
}

namespace {

// The content as it was written, in a text that manifest_text wrote: what stands behind the hash. Hashed as it is, so
// that no other way to write the same numbers passes.
std::string_view content_text(std::string_view text) {
  constexpr size_t before = std::string_view(R"({"xxh3":"0123456789abcdef","content":)").size();
  while (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  return text.size() <= before ? std::string_view() : text.substr(before, text.size() - before - 1);
}

json parse_json(std::string_view text, const std::string& origin) {
  try {
    return parse_strict_json(text, origin);
  } catch (const UserError& error) {
    throw DamagedCheckpoint(error.what());
  }
}

}  // namespace

Manifest parse_manifest(std::string_view text, const std::string& origin) {
  const json whole = parse_json(text, origin);
  const Members outer(whole, "its outermost value", origin, 2);
  const json& content = outer.at("content");
  if (outer.to_hash(outer.at("xxh3")) != hash_of(content_text(text))) {
    damaged("{} is damaged: its content does not fit its hash. Was it edited?", origin);
  }

  const Members members(content, "its content", origin);
  if (const std::string format = members.text("format"); format != format_name)
    user_error("{} is of the format \"{}\"; this program reads \"{}\".", origin, format, format_name);
  const int64_t version = members.number("version");
  if (version < oldest_format_version || version > format_version) {
    user_error(
        "{} has version {} of the format, and this program reads versions {} to {}. It was written by {} version of "
        "Conclave: load it with that one.",
        origin, version, oldest_format_version, format_version, version > format_version ? "a newer" : "an older");
  }
  members.expect_count(6);
  Manifest manifest;
  manifest.identity = outer.text("xxh3");
  manifest.state = state_from(members.object("state"), origin, version);
  manifest.hash_block_bytes = members.unsigned_number("hash_block_bytes");
  read_contents(members, origin, manifest);
  if (const auto flaw = flaw_of(manifest)) damaged("{} is damaged: {}.", origin, *flaw);
  return manifest;
}

std::string contribution_text(const Manifest& part) {
  return contents_to_json(part).dump();
}

void add_contribution(Manifest& manifest, std::string_view text) {
  const std::string origin = "a rank's contribution to the manifest";
  const json content = parse_strict_json(text, origin);
  Manifest part;
  read_contents(Members(content, "it", origin, 2), origin, part);
  for (const auto& [file, bytes] : part.files)
    check_invariant(manifest.files.emplace(file, bytes).second, "file {} is written by one rank", file);
  for (auto& [name, tensor] : part.tensors) {
    const auto [place, is_new] = manifest.tensors.try_emplace(name, ManifestTensor{tensor.dtype, tensor.shape, {}});
    ManifestTensor& known = place->second;
    check_invariant(known.dtype == tensor.dtype && known.shape == tensor.shape,
                    "ranks agree on tensor {}: {} {} and {} {}", name, name_of(known.dtype), text_of(known.shape),
                    name_of(tensor.dtype), text_of(tensor.shape));
    for (Piece& piece : tensor.pieces) known.pieces.push_back(std::move(piece));
    std::sort(known.pieces.begin(), known.pieces.end(),
              [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  }
}

}  // namespace conclave
