// Oracle throughout: the lists of tokens that set_on_disk.h wrote, and byte offsets counted by hand from the
// description of the format.
#include "data/indexed_tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "base/error.h"
#include "set_on_disk.h"

namespace conclave {
namespace {

using testing::HasSubstr;

std::string refusal_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const UserError& error) {
    return error.what();
  }
  return "nothing was refused";
}

std::vector<int64_t> read_all(const IndexedTokens& set) {
  std::vector<int64_t> out(static_cast<size_t>(set.tokens()));
  set.read(0, out);
  return out;
}

TEST(IndexedTokens, every_integer_type_is_read_to_its_highest_id) {
  const ScratchFolder folder;
  struct {
    int code, bytes;
    int64_t highest;
    const char* name;
  } const types[] = {{1, 1, 255, "u8"},         {2, 1, 127, "i8"},        {3, 2, 32767, "i16"},
                     {4, 4, 2147483647, "i32"}, {5, 8, 1LL << 62, "i64"}, {8, 2, 65535, "u16"}};
  for (const auto& type : types) {
    SCOPED_TRACE(type.name);
    const auto written = SetOnDisk::of({{0, 1, type.highest}, {7}, {type.highest, 3}}, type.code, type.bytes);
    const IndexedTokens set(written.write(folder / type.name));
    EXPECT_STREQ(name_of(set.type()), type.name);
    EXPECT_EQ(set.tokens(), 6);
    EXPECT_EQ(set.documents(), 3);
    EXPECT_EQ(read_all(set), written.tokens);
    EXPECT_EQ(set.highest_token(), type.highest);
  }
}

TEST(IndexedTokens, any_stretch_of_the_stream_is_read_across_documents) {
  const ScratchFolder folder;
  const auto written = SetOnDisk::of({{1, 2, 3}, {}, {4}, {5, 6, 7, 8}});
  const IndexedTokens set(written.write(folder / "set"));
  for (int64_t begin = 0; begin <= 8; ++begin) {
    for (int64_t count = 0; begin + count <= 8; ++count) {
      std::vector<int64_t> out(static_cast<size_t>(count));
      set.read(begin, out);
      EXPECT_EQ(out, std::vector<int64_t>(written.tokens.begin() + begin, written.tokens.begin() + begin + count));
    }
  }
  std::vector<int64_t> out(3);
  EXPECT_THROW(set.read(6, out), InvariantError);
  EXPECT_THROW(set.read(-1, out), InvariantError);
}

TEST(IndexedTokens, documents_of_several_sequences_and_empty_ones_are_found) {
  const ScratchFolder folder;
  auto written = SetOnDisk::of({{1, 2}, {3}, {}, {4, 5, 6}});
  written.boundaries = {0, 2, 2, 4};  // documents: two sequences, none, two sequences
  written.boundary_count = 4;
  const IndexedTokens set(written.write(folder / "set"));
  EXPECT_EQ(set.sequences(), 4);
  EXPECT_EQ(set.documents(), 3);
  EXPECT_EQ(set.first_token_of_document(0), 0);
  EXPECT_EQ(set.first_token_of_document(1), 3);
  EXPECT_EQ(set.first_token_of_document(2), 3);
  EXPECT_EQ(set.first_token_of_document(3), 6);
  for (int64_t token = 0; token < 6; ++token) EXPECT_EQ(set.document_of_token(token), token < 3 ? 0 : 2) << token;
}

TEST(IndexedTokens, prefix_is_accepted_with_a_suffix_too) {
  const ScratchFolder folder;
  const auto prefix = SetOnDisk::of({{1, 2}}).write(folder / "set.v1");
  for (const char* suffix : {"", ".bin", ".idx"}) {
    const IndexedTokens set(prefix.string() + suffix);
    EXPECT_EQ(set.prefix(), prefix);
    EXPECT_EQ(set.tokens(), 2);
  }
}

// Each case breaks one rule of a set of two documents of 3 and 2 tokens in u16. In its .idx: header 0-33, lengths at 34
// and 38, offsets at 42 and 50, boundaries at 58, 66 and 74, end at 82. Its .bin has 10 bytes.
struct Malformed {
  const char* rule;
  std::function<void(SetOnDisk&)> breaks;
  const char* file;
  int64_t byte;
  std::vector<const char*> says;
};

TEST(IndexedTokens, every_broken_rule_is_refused_with_file_and_offset) {
  const std::vector<Malformed> cases = {
      {"foreign first byte", [](auto& s) { s.magic[0] = 'X'; }, ".idx", 0, {"found 0x58, expected 0x4d", "MMIDIDX"}},
      {"last byte of the magic", [](auto& s) { s.magic[8] = 1; }, ".idx", 8, {"found 0x01, expected 0x00"}},
      {"version 0", [](auto& s) { s.version = 0; }, ".idx", 9, {"found version 0, expected 1"}},
      {"version 2^63", [](auto& s) { s.version = 1ull << 63; }, ".idx", 9, {"expected 1"}},
      {"type 0", [](auto& s) { s.type = 0; }, ".idx", 17, {"found type 0"}},
      {"type 9", [](auto& s) { s.type = 9; }, ".idx", 17, {"found type 9"}},
      {"fp64", [](auto& s) { s.type = 6; }, ".idx", 17, {"found type 6 (floating point)"}},
      {"fp32", [](auto& s) { s.type = 7; }, ".idx", 17, {"found type 7 (floating point)"}},
      {"no sequence", [](auto& s) { s.sequences = 0; }, ".idx", 18, {"found 0 sequences", "empty"}},
      {"a sequence too many", [](auto& s) { s.sequences = 5; }, ".idx", 18, {"found 5 sequences", "at most 4"}},
      {"2^64 - 1 sequences", [](auto& s) { s.sequences = ~0ull; }, ".idx", 18, {"truncated or damaged"}},
      {"sequences whose bytes overflow", [](auto& s) { s.sequences = 0x1555555555555556ull; }, ".idx", 18, {"damaged"}},
      {"one boundary", [](auto& s) { s.boundary_count = 1; }, ".idx", 26, {"found 1 document boundaries"}},
      {"a boundary too many", [](auto& s) { s.boundary_count = 4; }, ".idx", 26, {"found 4", "at most 3", "truncated"}},
      {"2^61 boundaries", [](auto& s) { s.boundary_count = 1ull << 61; }, ".idx", 26, {"damaged"}},
      {"a boundary too few", [](auto& s) { s.boundary_count = 2; }, ".idx", 74, {"found 8 more bytes"}},
      {"bytes behind the index", [](auto& s) { s.behind_index = "abc"; }, ".idx", 82, {"found 3 more bytes"}},
      {"negative length", [](auto& s) { s.lengths[1] = -2; }, ".idx", 38, {"sequence 1: found length -2"}},
      {"offset inside a token",
       [](auto& s) { s.offsets[1] = 5; },
       ".idx",
       50,
       {"found offset 5", "multiple of the token size 2"}},
      {"first offset not 0", [](auto& s) { s.offsets[0] = 2; }, ".idx", 42, {"found offset 2, expected 0"}},
      {"gap between sequences", [](auto& s) { s.offsets[1] = 8; }, ".idx", 50, {"found offset 8, expected 6"}},
      {"overlap of sequences", [](auto& s) { s.offsets[1] = 4; }, ".idx", 50, {"found offset 4, expected 6"}},
      {"negative offset", [](auto& s) { s.offsets[1] = -6; }, ".idx", 50, {"found offset -6, expected 6"}},
      {"offset at the end of the range", [](auto& s) { s.offsets[1] = INT64_MAX - 1; }, ".idx", 50, {"expected 6"}},
      {"length beyond the tokens",
       [](auto& s) { s.lengths[1] = 3; },
       ".bin",
       10,
       {"sequence 1 takes bytes 6 to 12", "truncated"}},
      {"longest length", [](auto& s) { s.lengths[1] = INT32_MAX; }, ".bin", 10, {"truncated"}},
      {"truncated tokens",
       [](auto& s) { s.tokens.pop_back(); },
       ".bin",
       8,
       {"the file ends here", "sequence 1 takes bytes 6 to 10"}},
      {"tokens behind the last sequence", [](auto& s) { s.behind_bin = "xy"; }, ".bin", 10, {"found 2 more bytes"}},
      {"half a token", [](auto& s) { s.behind_bin = "x"; }, ".bin", 10, {"found 1 more bytes"}},
      {"another token type", [](auto& s) { s.type = 1; }, ".idx", 50, {"found offset 6, expected 3"}},
      {"no tokens",
       [](auto& s) {
         s.lengths = {0, 0}, s.offsets = {0, 0}, s.tokens.clear();
       },
       ".bin",
       0,
       {"empty"}},
      {"first boundary not 0",
       [](auto& s) { s.boundaries[0] = 1; },
       ".idx",
       58,
       {"first document boundary 1, expected 0"}},
      {"negative boundary", [](auto& s) { s.boundaries[1] = -1; }, ".idx", 66, {"boundary 1 = -1, expected 0 or more"}},
      {"boundary beyond the sequences",
       [](auto& s) { s.boundaries[1] = 3; },
       ".idx",
       66,
       {"boundary 1 = 3, expected at most 2"}},
      {"last boundary below",
       [](auto& s) { s.boundaries[2] = 1; },
       ".idx",
       74,
       {"last document boundary 1, expected 2"}},
      {"decreasing boundaries",
       [](auto& s) {
         s.boundaries = {0, 2, 1};
       },
       ".idx",
       74,
       {"boundary 2 = 1, expected 2 or more"}},
  };
  for (const Malformed& malformed : cases) {
    SCOPED_TRACE(malformed.rule);
    const ScratchFolder folder;
    auto written = SetOnDisk::of({{1, 2, 3}, {4, 5}});
    ASSERT_EQ(written.index().size(), 82u);
    malformed.breaks(written);
    const auto prefix = written.write(folder / "set");
    const std::string message = refusal_of([&] { IndexedTokens set(prefix); });
    EXPECT_THAT(message, HasSubstr(fmt::format("{}{}, byte {}: ", prefix.string(), malformed.file, malformed.byte)));
    for (const char* part : malformed.says) EXPECT_THAT(message, HasSubstr(part));
  }
}

TEST(IndexedTokens, an_index_cut_anywhere_is_refused) {
  const ScratchFolder folder;
  const auto written = SetOnDisk::of({{1, 2, 3}, {4, 5}});
  const auto prefix = written.write(folder / "set");
  for (size_t kept = 0; kept < written.index().size(); ++kept) {
    std::ofstream(prefix.string() + ".idx", std::ios::binary | std::ios::trunc) << written.index().substr(0, kept);
    EXPECT_THAT(refusal_of([&] { IndexedTokens set(prefix); }), HasSubstr(prefix.string() + ".idx, byte ")) << kept;
  }
}

TEST(IndexedTokens, a_missing_file_is_named_with_the_way_to_make_it) {
  const ScratchFolder folder;
  const auto prefix = folder / "absent";
  EXPECT_THAT(
      refusal_of([&] { IndexedTokens set(prefix); }),
      testing::AllOf(HasSubstr(prefix.string() + ".idx"), HasSubstr("No such file"), HasSubstr("conclave data build")));
  std::ofstream(prefix.string() + ".idx", std::ios::binary) << SetOnDisk::of({{1}}).index();
  EXPECT_THAT(refusal_of([&] { IndexedTokens set(prefix); }), HasSubstr(prefix.string() + ".bin"));
  std::filesystem::create_directory(prefix.string() + ".bin");
  EXPECT_THAT(refusal_of([&] { IndexedTokens set(prefix); }), HasSubstr("Is a directory"));
}

TEST(IndexedTokens, a_token_outside_the_vocabulary_is_refused_with_its_position) {
  const ScratchFolder folder;
  const auto prefix = SetOnDisk::of({{1, 2, 3}, {4, 100, 6}, {7}}).write(folder / "set");
  const IndexedTokens set(prefix, 100);
  std::vector<int64_t> out(3);
  set.read(1, out);  // does not touch it
  const std::string expected =
      prefix.string() +
      ".bin, byte 8: found token id 100, expected 0 to 99 (vocab_size 100). It is token 4 of the set, "
      "token 1 of document 1.";
  EXPECT_THAT(refusal_of([&] { set.read(2, out); }), HasSubstr(expected));
  EXPECT_THAT(refusal_of([&] { set.check_vocabulary(100); }), HasSubstr(expected));
  set.check_vocabulary(101);
  const IndexedTokens enough(prefix, 101);
  enough.read(2, out);
  EXPECT_EQ(out[2], 100);
}

TEST(IndexedTokens, a_negative_token_is_refused_whatever_the_vocabulary) {
  const ScratchFolder folder;
  struct {
    int code, bytes;
  } const types[] = {{2, 1}, {3, 2}, {4, 4}, {5, 8}};
  for (const auto& type : types) {
    const auto prefix = SetOnDisk::of({{1, -1, 3}}, type.code, type.bytes).write(folder / std::to_string(type.code));
    const IndexedTokens set(prefix);
    std::vector<int64_t> out(3);
    EXPECT_THAT(refusal_of([&] { set.read(0, out); }), HasSubstr("found token id -1, expected 0 to")) << type.code;
    EXPECT_THAT(refusal_of([&] { set.check_vocabulary(1 << 20); }), HasSubstr("found token id -1, expected 0 to"))
        << type.code;
  }
}

// 200,000 tokens: more than three blocks of the scan, with the bad one in each place where a block begins or ends.
TEST(IndexedTokens, the_scan_finds_a_bad_token_anywhere) {
  const ScratchFolder folder;
  std::vector<int64_t> tokens(200000, 5);
  for (const size_t bad : {0u, 65535u, 65536u, 131072u, 199999u}) {
    tokens[bad] = 1000;
    const IndexedTokens set(SetOnDisk::of({tokens}).write(folder / "set"));
    EXPECT_THAT(refusal_of([&] { set.check_vocabulary(1000); }),
                HasSubstr(fmt::format("It is token {} of the set", bad)));
    EXPECT_EQ(set.highest_token(), 1000);
    tokens[bad] = 5;
  }
}

}  // namespace
}  // namespace conclave
