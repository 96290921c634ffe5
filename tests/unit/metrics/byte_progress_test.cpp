#include "metrics/byte_progress.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>

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

std::string shown_on(int terminal) {
  std::string text;
  std::array<char, 4096> buffer{};
  pollfd readable{terminal, POLLIN, 0};
  while (::poll(&readable, 1, /*milliseconds=*/200) > 0) {  // what was written may come in parts
    const ssize_t count = ::read(terminal, buffer.data(), buffer.size());
    if (count <= 0) break;
    text.append(buffer.data(), static_cast<size_t>(count));
  }
  return text;
}

TEST(ByteProgress, is_shown_on_a_terminal_and_taken_away_in_the_end) {
  int terminal = -1, program = -1;
  ASSERT_EQ(::openpty(&terminal, &program, nullptr, nullptr, nullptr), 0);
  std::FILE* out = ::fdopen(program, "w");
  {
    ByteProgress progress("export", 100, ByteProgress::Show::on_terminal, out);
    progress.add(40);
    progress.add(1);  // too soon after the first to be shown
  }
  const std::string text = shown_on(terminal);
  EXPECT_NE(text.find("export  40 bytes of 100 bytes"), std::string::npos) << text;
  EXPECT_EQ(text.find("41 bytes"), std::string::npos);
  EXPECT_EQ(text.substr(text.size() - 4), "\r\x1b[K");
  std::fclose(out);
  ::close(terminal);
}

TEST(ByteProgress, is_not_shown_elsewhere_or_unasked) {
  std::FILE* file = std::tmpfile();
  { ByteProgress("export", 100, ByteProgress::Show::on_terminal, file).add(40); }
  EXPECT_EQ(std::ftell(file), 0);
  std::fclose(file);
  int terminal = -1, program = -1;
  ASSERT_EQ(::openpty(&terminal, &program, nullptr, nullptr, nullptr), 0);
  std::FILE* out = ::fdopen(program, "w");
  { ByteProgress("export", 100, ByteProgress::Show::never, out).add(40); }
  std::fputs("end", out);
  std::fflush(out);
  EXPECT_EQ(shown_on(terminal), "end");
  std::fclose(out);
  ::close(terminal);
}

}  // namespace
}  // namespace conclave
