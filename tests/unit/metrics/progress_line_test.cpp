#include "metrics/progress_line.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>

#include "terminal.h"

namespace conclave {
namespace {

Progress progress_at(int64_t step) {
  return {.step = step,
          .loss = 3.41234,
          .grad_norm = 0.8149,
          .lr = 9.8e-5,
          .tokens_per_second = 5123.4,
          .step_seconds = 0.5,
          .expert_imbalance = 1.2149,
          .peak_memory_bytes = 665719930};  // 0.62 * 2^30
}

// All that is written to `out` by a run of `steps` steps.
std::string shown(std::FILE* out, int64_t steps, int64_t log_every) {
  ProgressLine line(steps, log_every, out);
  for (int64_t step = 1; step <= steps; ++step) line.show(progress_at(step));
  line.end_line();
  std::rewind(out);
  std::array<char, 4096> text{};
  return {text.data(), std::fread(text.data(), 1, text.size(), out)};
}

TEST(ProgressLine, says_what_a_step_did) {
  EXPECT_EQ(format_progress(progress_at(120), 1200, 192.0),
            "step  120/1200  loss 3.4123  grad norm 0.81  lr 9.8e-05  5,123 tokens/s  imbalance 1.21  "
            "left 00:03:12  memory 0.62 GiB");
}

TEST(ProgressLine, says_what_takes_most_of_the_memory) {
  Progress progress = progress_at(120);
  progress.memory_of = {{"parameters", 232}, {"moments", 460}, {"gradients", 232}, {"logits", 76}, {"dispatch", 0}};
  const std::string line = format_progress(progress, 1200, 192.0);
  EXPECT_TRUE(line.ends_with("  memory 0.62 GiB (moments 46 %, parameters 23 %, gradients 23 %)")) << line;
  progress.memory_of = {{"logits", 0}};
  EXPECT_TRUE(format_progress(progress, 1200, 192.0).ends_with("GiB"));
  progress.memory_of = {{"logits", 1}};
  EXPECT_TRUE(format_progress(progress, 1200, 192.0).ends_with("GiB (logits 100 %)"));
}

TEST(ProgressLine, survives_values_that_are_no_numbers_and_long_runs) {
  Progress progress = progress_at(1);
  progress.loss = std::numeric_limits<double>::quiet_NaN();
  progress.tokens_per_second = std::numeric_limits<double>::infinity();
  EXPECT_EQ(format_progress(progress, 9, 2 * 86400.0 + 3 * 3600 + 4 * 60 + 5.4),
            "step 1/9  loss nan  grad norm 0.81  lr 9.8e-05  inf tokens/s  imbalance 1.21  left 2d 03:04:05  "
            "memory 0.62 GiB");
  progress.tokens_per_second = 1234567;
  EXPECT_NE(format_progress(progress, 9, std::nullopt).find("  1,234,567 tokens/s  "), std::string::npos);
  progress.tokens_per_second = 999;
  EXPECT_NE(format_progress(progress, 9, std::nullopt).find("  999 tokens/s  "), std::string::npos);
}

TEST(ProgressLine, gives_a_file_every_nth_line_and_the_last) {
  std::FILE* out = std::tmpfile();
  const std::string text = shown(out, 7, 3);
  std::fclose(out);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 3);
  EXPECT_EQ(text.find('\r'), std::string::npos);
  for (const char* start : {"step 3/7", "step 6/7", "step 7/7"}) EXPECT_NE(text.find(start), std::string::npos) << text;
}

// A pseudo terminal of 40 columns: every step rewrites one line, which never reaches the last column (there it would
// wrap).
TEST(ProgressLine, rewrites_one_line_on_a_terminal) {
  const std::string printed = printed_on_terminal(40, [](std::FILE* out) {
    ProgressLine line(20, 10, out);
    line.show(progress_at(1));
    line.show(progress_at(2));
  });
  const std::string line_1 = "step  1/20  loss 3.4123  grad norm 0.81";
  const std::string line_2 = "step  2/20  loss 3.4123  grad norm 0.81";
  ASSERT_EQ(line_1.size(), 39u);
  EXPECT_EQ(printed, "\r" + line_1 + "\x1b[K" + "\r" + line_2 + "\x1b[K" + "\r\n");
}

TEST(TimeLeft, of_equal_steps_is_exact_from_the_first_on) {
  TimeLeft left(100);
  for (int64_t step = 1; step <= 100; ++step)
    EXPECT_NEAR(left.after(step, 0.25), 0.25 * static_cast<double>(100 - step), 1e-9);
}

// Oracle: the closed form of the weighted mean. One step of 100 s, then n of 1 s: 1 + 99 * 0.95^n * 0.05 / (1 - 0.95^(n
// + 1)).
TEST(TimeLeft, forgets_a_slow_first_step) {
  TimeLeft left(1000);
  left.after(1, 100.0);
  double decay = 0.95;
  for (int64_t step = 2; step <= 200; ++step, decay *= 0.95) {
    const double mean = 1 + 99 * decay * 0.05 / (1 - decay * 0.95);
    EXPECT_NEAR(left.after(step, 1.0), mean * static_cast<double>(1000 - step), 1e-6);
  }
}

}  // namespace
}  // namespace conclave
