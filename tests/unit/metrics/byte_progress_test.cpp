#include "metrics/byte_progress.h"

#include <gtest/gtest.h>

#include <string>

#include "terminal.h"

namespace conclave {
namespace {

TEST(ByteProgress, counts_bytes_as_disks_are_sold) {
  EXPECT_EQ(byte_count(0), "0 bytes");
  EXPECT_EQ(byte_count(999), "999 bytes");
  EXPECT_EQ(byte_count(1000), "1.00 kB");
  EXPECT_EQ(byte_count(9999), "10.0 kB");
  EXPECT_EQ(byte_count(123456), "123 kB");
  EXPECT_EQ(byte_count(999999), "1.00 MB");
  EXPECT_EQ(byte_count(5'000'000'000), "5.00 GB");
  EXPECT_EQ(byte_count(93'400'000'000), "93.4 GB");
}

TEST(ByteProgress, says_how_far_how_fast_and_how_long_yet) {
  EXPECT_EQ(format_byte_progress("export", 1'200'000'000, 3'000'000'000, 2.0),
            "export  1.20 GB of 3.00 GB   40 %  600 MB/s  left 00:00:03");
  EXPECT_EQ(format_byte_progress("verify", 0, 100, 0.0), "verify  0 bytes of 100 bytes    0 %");
  EXPECT_EQ(format_byte_progress("verify", 0, 0, 1.0), "verify  0 bytes of 0 bytes  100 %");
}

TEST(ByteProgress, is_shown_on_a_terminal_and_taken_away_in_the_end) {
  const std::string text = printed_on_terminal(80, [](std::FILE* out) {
    ByteProgress progress("export", 100, ByteProgress::Show::on_terminal, out);
    progress.add(40);
    progress.add(1);  // too soon after the first to be shown
  });
  EXPECT_NE(text.find("export  40 bytes of 100 bytes"), std::string::npos) << text;
  EXPECT_EQ(text.find("41 bytes"), std::string::npos);
  EXPECT_EQ(text.substr(text.size() - 4), "\r\x1b[K");
}

TEST(ByteProgress, is_not_shown_elsewhere_or_unasked) {
  std::FILE* file = std::tmpfile();
  { ByteProgress("export", 100, ByteProgress::Show::on_terminal, file).add(40); }
  EXPECT_EQ(std::ftell(file), 0);
  std::fclose(file);
  EXPECT_EQ(printed_on_terminal(80,
                                [](std::FILE* out) {
                                  { ByteProgress("export", 100, ByteProgress::Show::never, out).add(40); }
                                  std::fputs("end", out);
                                }),
            "end");
}

}  // namespace
}  // namespace conclave
