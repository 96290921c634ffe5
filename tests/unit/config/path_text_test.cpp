// Oracle: what a shell makes of the same text.
#include "config/path_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

namespace conclave {
namespace {

using testing::HasSubstr;

class PathText : public testing::Test {
 protected:
  PathText() {
    setenv("HOME", "/home/me", 1);
    setenv("SCRATCH_1", "/scratch/me", 1);
    setenv("DOLLAR", "a$b", 1);
    setenv("EMPTY", "", 1);
    unsetenv("NOT_SET");
  }
  static std::string expanded(std::string text) {
    EXPECT_EQ(expand_path(text), "");
    return text;
  }
  static std::string refusal(std::string text) {
    const std::string before = text;
    const std::string refusal = expand_path(text);
    EXPECT_EQ(text, before) << "a path that is refused stays as it was";
    return refusal;
  }
};

TEST_F(PathText, is_expanded_as_a_shell_does) {
  EXPECT_EQ(expanded("~"), "/home/me");
  EXPECT_EQ(expanded("~/runs/a"), "/home/me/runs/a");
  EXPECT_EQ(expanded("~root/runs"), "/root/runs");
  EXPECT_EQ(expanded("${SCRATCH_1}/run"), "/scratch/me/run");
  EXPECT_EQ(expanded("$SCRATCH_1/run"), "/scratch/me/run");
  EXPECT_EQ(expanded("a-${SCRATCH_1}${SCRATCH_1}"), "a-/scratch/me/scratch/me");
  EXPECT_EQ(expanded("runs/$DOLLAR/c"), "runs/a$b/c") << "what a variable holds is not expanded again";
}

TEST_F(PathText, keeps_what_is_neither_home_nor_variable) {
  for (const char* text :
       {"runs/a", "/a b", "a~b", "runs/~", "./~", "cost$", "5$/a", "a$5", "$/a", "a%b", "{SCRATCH_1}"})
    EXPECT_EQ(expanded(text), text);
  EXPECT_EQ(expanded("a$$b"), "a$b");
  EXPECT_EQ(expanded("$${SCRATCH_1}"), "${SCRATCH_1}");
}

TEST_F(PathText, without_a_value_it_is_refused_by_name) {
  EXPECT_EQ(refusal("${NOT_SET}/a"),
            ", but the environment variable NOT_SET is not set. Set it, or write $$ for a dollar sign.");
  EXPECT_THAT(refusal("a/$NOT_SET"), HasSubstr("variable NOT_SET is not set"));
  EXPECT_THAT(refusal("${EMPTY}/a"), HasSubstr("variable EMPTY is empty"));
  EXPECT_THAT(refusal("${NOT_SET:-a}"), HasSubstr("${NOT_SET:-a} is no variable"));
  EXPECT_THAT(refusal("${SCRATCH_1"), HasSubstr("${SCRATCH_1 is no variable"));
  EXPECT_THAT(refusal("${}"), HasSubstr("${} is no variable"));
  EXPECT_THAT(refusal("${1}"), HasSubstr("${1} is no variable"));
  EXPECT_THAT(refusal("~no-such-user/a"), HasSubstr("the user no-such-user has no home folder"));
}

TEST_F(PathText, what_is_written_reads_back) {
  for (const char* path : {"/a", "a$b", "$$", "${HOME}", "$HOME", "~", "~/a", "~root", "a~", "$"}) {
    std::string text = written_path(path);
    EXPECT_EQ(expand_path(text), "");
    EXPECT_EQ(text, path[0] == '~' ? std::string("./") + path : path);
  }
}

}  // namespace
}  // namespace conclave
