#include "metrics/panel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "metrics/progress_line.h"
#include "terminal.h"

namespace conclave {
namespace {

Progress progress_at(int64_t step, double loss) {
  return {.step = step,
          .loss = loss,
          .grad_norm = 0.8149,
          .lr = 9.8e-5,
          .tokens_per_second = 5123.4,
          .step_seconds = 0.4,
          .expert_imbalance = 1.2149,
          .imbalance_by_layer = {1.05, 1.2, 1.8, 1.1},
          .peak_memory_bytes = 665719930,  // 0.62 * 2^30
          .memory_of = {{"moments", 3}, {"parameters", 1}}};
}

size_t letters_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

TEST(Curve, shows_each_value_between_the_lowest_and_the_highest) {
  Curve curve(8);
  for (const double value : {8, 7, 6, 5, 4, 3, 2, 1}) curve.add(value);
  EXPECT_EQ(curve.drawn(true), "█▇▆▅▄▃▂▁");
  EXPECT_EQ(curve.drawn(false), "#*+=~-._");
}

// Oracle: means of pairs, by hand: 1, 3, 5, 7 are the means of 0..7 in pairs less 0.5; the ninth value begins a column.
TEST(Curve, averages_neighbours_when_there_are_more_values_than_columns) {
  Curve curve(4);
  for (const double value : {0, 0, 10, 10}) curve.add(value);
  EXPECT_EQ(curve.drawn(true), "▁▁██");
  curve.add(0);
  EXPECT_EQ(curve.drawn(true), "▁█▁");
  curve.add(10);  // the mean of 0 and 10 is half way: the fifth of eight blocks
  EXPECT_EQ(curve.drawn(true), "▁█▅");
  for (int i = 0; i < 100000; ++i) curve.add(10);
  EXPECT_LE(letters_of(curve.drawn(true)), 4u);
}

TEST(Curve, leaves_out_what_is_no_number_and_draws_equal_values) {
  Curve curve(4);
  EXPECT_EQ(curve.drawn(true), "");
  curve.add(std::numeric_limits<double>::quiet_NaN());
  curve.add(std::numeric_limits<double>::infinity());
  EXPECT_TRUE(curve.is_empty());
  curve.add(2);
  curve.add(2);
  EXPECT_EQ(curve.drawn(true), "▁▁");
}

TEST(Panel, says_where_a_run_stands) {
  Panel panel(480, {.has_unicode = true, .has_color = false});
  panel.add(progress_at(1, 6.2404));
  Progress progress = progress_at(120, 3.41234);
  progress.validation_loss = 3.52014;
  panel.add(progress);
  const std::vector<std::string> lines = panel.lines(192, 200);
  const std::vector<std::string> expected = {
      "step 120/480  ━━━━━━━━────────────────────────  25 %   left 00:03:12",
      "loss        3.4123  █▁  6.2404 at first",
      "validation  3.5201  ▁  after step 120",
      "speed       5,123 tokens/s, 0.40 s a step; lr 9.8e-05, gradient norm 0.81",
      "memory      0.62 GiB (moments 75 %, parameters 25 %)",
      "experts     busiest over mean 1.21; by layer ▁▂█▁  1.05 to 1.80 (layer 2)",
  };
  EXPECT_EQ(lines, expected);
}

TEST(Panel, is_never_wider_than_the_terminal) {
  for (const bool has_color : {false, true}) {
    Panel panel(480, {.has_unicode = true, .has_color = has_color});
    Progress progress = progress_at(7, std::numeric_limits<double>::quiet_NaN());
    progress.sources = {{"a name with\x1b[2J an escape", 1.5}, {std::string(300, 'x'), 2.5}};
    panel.add(progress);
    for (const size_t columns : {60u, 80u, 500u})
      for (const std::string& line : panel.lines(1e9, columns)) {
        EXPECT_EQ(line.find("\x1b[2J"), std::string::npos);
        if (!has_color) {
          EXPECT_LE(letters_of(line), columns) << line;
        }
      }
  }
}

TEST(Panel, has_no_colour_of_which_nobody_wants_any) {
  ::setenv("TERM", "xterm", 1);
  ::setenv("NO_COLOR", "1", 1);
  EXPECT_FALSE(terminal_style().has_color);
  ::unsetenv("NO_COLOR");
  EXPECT_TRUE(terminal_style().has_color);
  ::setenv("TERM", "dumb", 1);
  EXPECT_FALSE(terminal_style().has_color);
  EXPECT_FALSE(moves_its_cursor());
}

TEST(CutToColumns, counts_letters_and_keeps_escapes_whole) {
  EXPECT_EQ(cut_to_columns("abcdef", 3), "abc");
  EXPECT_EQ(cut_to_columns("▁▂▃▄", 2), "▁▂");
  EXPECT_EQ(cut_to_columns("\x1b[2mab\x1b[0mcd", 3), "\x1b[2mab\x1b[0mc");
  EXPECT_EQ(cut_to_columns("ab\x1b[1", 9), "ab\x1b[1");
}

// A terminal, played: what stands on its rows after all that was printed. Knows what the panel uses.
std::vector<std::string> rows_after(const std::string& printed) {
  std::vector<std::string> rows(1);
  size_t row = 0;
  for (size_t at = 0; at < printed.size(); ++at) {
    if (printed[at] == '\n') {
      if (++row == rows.size()) rows.emplace_back();
    } else if (printed[at] == '\x1b') {
      const size_t end = printed.find_first_of("AKJ", at);
      const std::string amount = printed.substr(at + 2, end - at - 2);
      if (printed[end] == 'A') row -= std::stoul(amount);
      if (printed[end] == 'J') rows.resize(row + 1), rows[row].clear();
      at = end;
    } else if (printed[at] != '\r') {
      if (at == 0 || printed[at - 1] == '\n' || printed[at - 1] == 'A' || printed[at - 1] == '\r') rows[row].clear();
      rows[row] += printed[at];
    }
  }
  return rows;
}

std::string shown_on_terminal(const std::function<void(ProgressLine&, std::FILE*)>& play) {
  ::setenv("TERM", "xterm", 1);
  ::setenv("NO_COLOR", "1", 1);
  ::setenv("LC_ALL", "C.UTF-8", 1);
  return printed_on_terminal(80, [&](std::FILE* out) {
    ProgressLine line(3, 1, out);
    play(line, out);
  });
}

TEST(Panel, stays_in_place_on_a_terminal_and_makes_room_for_messages) {
  const std::vector<std::string> rows = rows_after(shown_on_terminal([](ProgressLine& line, std::FILE* out) {
    line.show(progress_at(1, 6));
    line.show(progress_at(2, 5));  // at once: not drawn
    line.end_line();
    std::fputs("a message\n", out);
    line.show(progress_at(3, 4));  // the last is always drawn
    line.end_line();
    std::fputs("done\n", out);
  }));
  ASSERT_EQ(rows.size(), 9u);
  EXPECT_TRUE(rows[0].starts_with("step 2/3  loss 5.0000")) << rows[0];
  EXPECT_EQ(rows[1], "a message");
  EXPECT_TRUE(rows[2].starts_with("step 3/3")) << rows[2];
  EXPECT_TRUE(rows[3].starts_with("loss        4.0000")) << rows[3];
  EXPECT_TRUE(rows[6].starts_with("experts ")) << rows[6];
  EXPECT_EQ(rows[7], "done");
}

}  // namespace
}  // namespace conclave
