// Oracle: what a terminal does with control characters (ECMA-48), and Unicode's table of well-formed UTF-8.
#include "base/printable.h"

#include <gtest/gtest.h>

namespace conclave {
namespace {

TEST(Printable, leaves_text_as_it_is) {
  for (const char* text :
       {"", "rank 1 stopped: the disk is full", "/data/Bücher/日本語/😀", "\xc2\xa0", "\xf4\x8f\xbf\xbf"})
    EXPECT_EQ(printable(text), text);
}

TEST(Printable, escapes_what_moves_a_terminal) {
  EXPECT_EQ(printable("\x1b]0;owned\x07"), "\\x1b]0;owned\\x07");
  EXPECT_EQ(printable(std::string_view("a\0b\x7f", 4)), "a\\x00b\\x7f");
  EXPECT_EQ(printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b2J")
      << "CSI as one character (C1)";
  EXPECT_EQ(printable("a\xe2\x80\xae"
                      "b"),
            "a\\xe2\\x80\\xaeb")
      << "writing from right to left";
  EXPECT_EQ(printable("a\r\nb\tc"), "a\\x0d\\nb\\tc");
}

TEST(Printable, keeps_line_feeds_where_asked) {
  EXPECT_EQ(printable("a\n\tb\rc", LineFeeds::kept), "a\n\tb\\x0dc");
}

TEST(Printable, escapes_bytes_that_are_no_utf8) {
  EXPECT_EQ(printable("\x80\x03."), "\\x80\\x03.") << "a pickle's first bytes";
  EXPECT_EQ(printable("\xc0\x9b"), "\\xc0\\x9b") << "overlong";
  EXPECT_EQ(printable("\xed\xa0\xbd"), "\\xed\\xa0\\xbd") << "a surrogate";
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80") << "beyond Unicode";
  EXPECT_EQ(printable("cut \xe6\x97"), "cut \\xe6\\x97");
}

}  // namespace
}  // namespace conclave
