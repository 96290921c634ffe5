// Oracle: masks written byte by byte from the description of the format, with a CRC-32 by its definition.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "base/error.h"
#include "data/indexed_tokens.h"
#include "data/inspect.h"
#include "set_on_disk.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const std::vector<uint8_t> mask = {0, 1, 1, 0, 0, 1, 0};

SetOnDisk set_of_seven() {
  SetOnDisk set = SetOnDisk::of({{1, 2, 3, 4}, {5, 6, 7}});
  set.version = 2;
  return set;
}

void write_file(const std::filesystem::path& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

std::string refusal_of(const std::filesystem::path& prefix) {
  try {
    const IndexedTokens set(prefix);
    if (set.mask() != nullptr) set.mask()->check();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

TEST(TokenMask, is_read_as_it_was_written) {
  const ScratchFolder folder;
  const IndexedTokens set(set_of_seven().write_masked(folder / "set", mask));
  ASSERT_NE(set.mask(), nullptr);
  EXPECT_EQ(set.mask()->trained(), 3);
  for (size_t first = 0; first <= mask.size(); ++first) {
    for (size_t end = first; end <= mask.size(); ++end) {
      std::vector<uint8_t> read(end - first);
      set.mask()->read(static_cast<int64_t>(first), read);
      const std::vector<uint8_t> expected(mask.begin() + static_cast<std::ptrdiff_t>(first),
                                          mask.begin() + static_cast<std::ptrdiff_t>(end));
      EXPECT_EQ(read, expected);
      EXPECT_EQ(set.mask()->count(static_cast<int64_t>(first), static_cast<int64_t>(end - first)),
                std::count(expected.begin(), expected.end(), 1));
    }
  }
  EXPECT_THAT(inspect_text(set, 2), AllOf(HasSubstr("3 tokens, 42.9 % (mask: 47 bytes)"), HasSubstr("0 1 1 0 0 1 0")));
}

TEST(TokenMask, a_set_without_one_has_none) {
  const ScratchFolder folder;
  const IndexedTokens set(SetOnDisk::of({{1, 2, 3}}).write(folder / "set"));
  EXPECT_EQ(set.mask(), nullptr);
}

// The loss is never of other tokens than was meant.
TEST(TokenMask, is_never_passed_over) {
  const ScratchFolder folder;
  set_of_seven().write(folder / "lost");
  EXPECT_THAT(refusal_of(folder / "lost"), AllOf(HasSubstr("lost.mask"), HasSubstr("says (version 2)")));
  SetOnDisk plain = SetOnDisk::of({{1, 2, 3}});
  plain.write(folder / "stray");
  write_file(folder / "stray.mask", set_of_seven().mask_file(mask));
  EXPECT_THAT(refusal_of(folder / "stray"), AllOf(HasSubstr("stray.mask is there"), HasSubstr("says (version 1)")));
}

TEST(TokenMask, of_another_set_or_damaged_is_refused) {
  const ScratchFolder folder;
  const SetOnDisk set = set_of_seven();
  const std::string good = set.mask_file(mask);
  const auto refusal = [&](std::string file) {
    set.write(folder / "set");
    write_file(folder / "set.mask", file);
    return refusal_of(folder / "set");
  };
  EXPECT_EQ(refusal(good), "");
  EXPECT_THAT(refusal(""), AllOf(HasSubstr("byte 0"), HasSubstr("truncated")));
  EXPECT_THAT(refusal(good.substr(0, 39)), AllOf(HasSubstr("byte 39"), HasSubstr("truncated")));
  EXPECT_THAT(refusal(good.substr(0, 46)), HasSubstr("found a file of 46 bytes, expected 47"));
  EXPECT_THAT(refusal(good + '\0'), HasSubstr("found a file of 48 bytes, expected 47"));
  const auto changed = [&](size_t at, char value) {
    std::string file = good;
    file[at] = value;
    return refusal(file);
  };
  EXPECT_THAT(changed(0, 'X'), HasSubstr("no mask of a token file"));
  EXPECT_THAT(changed(8, 2), AllOf(HasSubstr("byte 8"), HasSubstr("found version 2, expected 1")));
  EXPECT_THAT(changed(16, 8), AllOf(HasSubstr("byte 16"), HasSubstr("found 8 tokens, but the set has 7")));
  EXPECT_THAT(changed(24, 0), AllOf(HasSubstr("byte 24"), HasSubstr("expected 1 to 7")));
  EXPECT_THAT(changed(24, 4), HasSubstr("found 4 tokens that are trained on, but 3 of its bytes are 1"));
  EXPECT_THAT(changed(40, 2), AllOf(HasSubstr("byte 40"), HasSubstr("found 2, expected 0 or 1 (token 0 of the set)")));
  EXPECT_THAT(refusal(set.mask_file(mask, 17)), AllOf(HasSubstr("byte 32"), HasSubstr("of other files")));
  SetOnDisk other = set;  // tokens of the same lengths
  other.tokens[3] = 99;
  other.write(folder / "set");
  write_file(folder / "set.mask", good);
  EXPECT_THAT(refusal_of(folder / "set"), HasSubstr("of other files"));
}

}  // namespace
}  // namespace conclave
