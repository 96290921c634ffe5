#include "checkpoint/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <xxhash.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "thread_world.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Ten fp32 elements in two files; blocks of 16 elements.
Manifest good() {
  Manifest manifest;
  manifest.state = {.step = 12,
                    .samples = 384,
                    .tokens = 6144,
                    .seed = 0xfedcba9876543210ull,
                    .updates = 11,
                    .skipped_in_a_row = 1,
                    .data_fingerprint = "0123456789abcdef",
                    .resumed_from = "fedcba9876543210",
                    .job = {{"data.sequence_length", "16"}, {"optimizer.lr", "1.0e-3"}, {"run.name", "\"\xc3\xa4\"\n"}},
                    .model_config = "{\"hidden_size\": 32}",
                    .layout = {{"world", 2}},
                    .versions = {{"conclave", "0.1.0"}},
                    .values = {{"bias", {0.1f, -1.0, 3e38f, 1e-45f}}, {"none", {}}}};
  manifest.hash_block_bytes = 64;
  manifest.files = {{"rank-00000.safetensors", 200}, {"rank-00001.safetensors", 300}};
  manifest.tensors["t"] = {
      StoredDtype::F32,
      {4, 5},
      {{0, 3, "rank-00000.safetensors", 100, {1}}, {3, 20, "rank-00001.safetensors", 232, {2, 0xffffffffffffffff}}}};
  manifest.tensors["none"] = {StoredDtype::F32, {0}, {}};
  return manifest;
}

std::string refusal(const std::string& text) {
  return message_of<UserError>([&] { parse_manifest(text, "folder/manifest.json"); });
}

TEST(Manifest, is_read_as_it_was_written) {
  const std::string text = manifest_text(good());
  const Manifest read = parse_manifest(text, "origin");
  EXPECT_EQ(manifest_text(read), text);
  EXPECT_EQ(read.state, good().state);
  EXPECT_EQ(read.files, good().files);
  EXPECT_EQ(read.tensors.at("t").pieces.at(1).hashes, (std::vector<uint64_t>{2, 0xffffffffffffffff}));
  EXPECT_EQ(read.tensors.at("t").pieces.at(1).offset, 232u);
}

// Oracle: what "whole" means, one case for each condition.
TEST(Manifest, pieces_must_cover_each_tensor_within_the_files) {
  struct Case {
    std::function<void(Manifest&)> change;
    std::string said;
  };
  const auto piece = [](Manifest& m, size_t i) -> Piece& { return m.tensors["t"].pieces[i]; };
  const std::vector<Case> cases = {
      {[&](Manifest& m) { piece(m, 0).begin = 1; }, "without gap or overlap"},
      {[&](Manifest& m) { piece(m, 1).begin = 4; }, "without gap or overlap"},
      {[&](Manifest& m) { piece(m, 1).begin = 2; }, "without gap or overlap"},
      {[&](Manifest& m) { piece(m, 0).end = 0; }, "without gap or overlap"},
      {[&](Manifest& m) { piece(m, 1).end = 21; }, "without gap or overlap"},
      {[&](Manifest& m) { piece(m, 1).end = INT64_MAX; }, "without gap or overlap"},
      {[&](Manifest& m) { piece(m, 1).end = 19, piece(m, 1).hashes.pop_back(); }, "only up to element 19"},
      {[&](Manifest& m) { m.tensors["t"].pieces.clear(); }, "only up to element 0"},
      {[&](Manifest& m) { std::swap(piece(m, 0), piece(m, 1)); }, "without gap or overlap"},
      {[&](Manifest& m) { piece(m, 0).file = "rank-00002.safetensors"; }, "not listed"},
      {[&](Manifest& m) { piece(m, 1).offset = 233; }, "at byte 233 of rank-00001.safetensors, which has 300 bytes"},
      {[&](Manifest& m) { piece(m, 1).offset = UINT64_MAX; }, "at byte 18446744073709551615"},
      {[&](Manifest& m) { piece(m, 1).hashes.pop_back(); }, "1 hashes for a piece of 2 blocks"},
      {[&](Manifest& m) { piece(m, 0).hashes.push_back(1); }, "2 hashes for a piece of 1 blocks"},
      {[&](Manifest& m) {
         m.tensors["t"].shape = {INT64_MAX, 3};
       },
       "overflows"},
      {[&](Manifest& m) { m.tensors["t"].shape = {INT64_MAX}; }, "overflows"},
      {[&](Manifest& m) { m.tensors["t"].dtype = StoredDtype::F4; }, "narrower than a byte"},
      {[&](Manifest& m) { m.hash_block_bytes = 0; }, "hash_block_bytes is 0"},
      {[&](Manifest& m) { m.hash_block_bytes = 100; }, "hash_block_bytes is 100"},
      {[&](Manifest& m) { m.hash_block_bytes = 1ull << 40; }, "hash_block_bytes is"},
      {[&](Manifest& m) { m.files["../rank-00000.safetensors"] = 1; }, "not the name of a safetensors file"},
      {[&](Manifest& m) { m.files["manifest.json"] = 1; }, "not the name of a safetensors file"},
  };
  for (const Case& each : cases) {
    Manifest manifest = good();
    each.change(manifest);
    EXPECT_THAT(refusal(manifest_text(manifest)), AllOf(HasSubstr("folder/manifest.json"), HasSubstr(each.said)));
  }
}

// The text of good() as another version of the format would write it, with the hash of it.
std::string of_version(
    int64_t version, const std::function<void(nlohmann::json&)>& edit = [](auto&) {}) {
  nlohmann::json content = nlohmann::json::parse(manifest_text(good()))["content"];
  content["version"] = version;
  edit(content["state"]);
  const std::string text = content.dump();
  return fmt::format(R"({{"xxh3":"{:016x}","content":{}}})", XXH3_64bits(text.data(), text.size()), text);
}

TEST(Manifest, of_another_version_says_which_program_reads_it) {
  EXPECT_THAT(refusal(of_version(4)),
              AllOf(HasSubstr("version 4"), HasSubstr("reads versions 2 to 3"), HasSubstr("a newer version")));
  EXPECT_THAT(refusal(of_version(1)), AllOf(HasSubstr("version 1"), HasSubstr("an older version")));
}

// Version 2 counted samples alone, all of one length, and knew of no other run.
TEST(Manifest, of_version_2_is_read) {
  const Manifest read = parse_manifest(of_version(2,
                                                  [](auto& state) {
                                                    state.erase("tokens");
                                                    state.erase("resumed_from");
                                                  }),
                                       "origin");
  CheckpointState expected = good().state;
  expected.tokens = 384 * 16;
  expected.resumed_from = "";
  EXPECT_EQ(read.state, expected);
  EXPECT_EQ(read.tensors.size(), good().tensors.size());
  EXPECT_THAT(refusal(of_version(2)), HasSubstr("13 keys instead of 11"));
}

TEST(Manifest, its_identity_is_of_all_it_says) {
  const std::string identity = parse_manifest(manifest_text(good()), "origin").identity;
  EXPECT_EQ(identity, parse_manifest(manifest_text(good()), "another place").identity);
  Manifest other = good();
  other.tensors["t"].pieces[0].hashes = {2};  // other data
  EXPECT_NE(identity, parse_manifest(manifest_text(other), "origin").identity);
}

// Every single byte of the text matters: changed, it is refused (white space after the value aside).
TEST(Manifest, no_changed_byte_passes) {
  const std::string text = manifest_text(good());
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    std::string changed = text;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_NE(refusal(changed), "") << "byte " << i << " of " << text;
    EXPECT_NE(refusal(text.substr(0, i)), "") << "cut at " << i;
  }
}

// A well-formed value of another shape, with a hash that fits: as another program, or version, might write.
TEST(Manifest, other_contents_are_refused_by_what_they_lack) {
  const auto with = [](const std::function<void(nlohmann::json&)>& edit) {
    nlohmann::json whole = nlohmann::json::parse(manifest_text(good()));
    edit(whole);
    return refusal(whole.dump());
  };
  // Edits of the content meet the hash first: all that can be reached without it is the outer object.
  EXPECT_THAT(with([](auto& j) { j.erase("xxh3"); }), HasSubstr("has 1 keys instead of 2"));
  EXPECT_THAT(with([](auto& j) { j["more"] = 1; }), HasSubstr("has 3 keys instead of 2"));
  EXPECT_THAT(with([](auto& j) { j["xxh3"] = "xyz"; }), HasSubstr("16 hexadecimal digits"));
  EXPECT_THAT(with([](auto& j) { j["content"]["version"] = 3; }), HasSubstr("does not fit its hash"));
  EXPECT_THAT(refusal("[]"), HasSubstr("is not an object"));
  EXPECT_THAT(refusal(R"({"xxh3":"0","xxh3":"0"})"), HasSubstr("key \"xxh3\" twice"));
}

TEST(Manifest, contributions_of_ranks_add_up) {
  const Manifest whole = good();
  Manifest first = whole, second = whole;
  first.files.erase("rank-00001.safetensors");
  first.tensors["t"].pieces.pop_back();
  second.files.erase("rank-00000.safetensors");
  second.tensors["t"].pieces.erase(second.tensors["t"].pieces.begin());
  second.tensors.erase("none");
  for (const auto& order : {std::pair(&first, &second), std::pair(&second, &first)}) {
    Manifest sum;
    sum.state = whole.state;
    sum.hash_block_bytes = whole.hash_block_bytes;
    add_contribution(sum, contribution_text(*order.first));
    add_contribution(sum, contribution_text(*order.second));
    EXPECT_EQ(manifest_text(sum), manifest_text(whole));
  }
  Manifest sum;
  add_contribution(sum, contribution_text(first));
  EXPECT_THROW(add_contribution(sum, contribution_text(first)), InvariantError);
}

}  // namespace
}  // namespace conclave
