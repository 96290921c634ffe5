#include "metrics/metrics_log.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <random>
#include <sstream>

#include "file_size_limit.h"
#include "temporary_folder.h"

namespace conclave {
namespace {

std::string content(const std::filesystem::path& file) {
  std::ostringstream out;
  out << std::ifstream(file, std::ios::binary).rdbuf();
  return out.str();
}

void put(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
}

// Oracle: the text as RFC 8259 has it, written here by hand.
TEST(MetricsLine, is_one_json_object_with_the_keys_in_order) {
  const MetricsRecord record = {{"loss", 0.1},
                                {"tokens", int64_t{9007199254740993}},  // 2^53 + 1: no double holds it
                                {"mfu", std::monostate{}},
                                {"device", "cpu"},
                                {"expert_load", std::vector<double>{1.0, 2.5}}};
  EXPECT_EQ(metrics_line(12, record),
            "{\"step\":12,\"loss\":0.1,\"tokens\":9007199254740993,\"mfu\":null,\"device\":\"cpu\","
            "\"expert_load\":[1.0,2.5]}\n");
}

TEST(MetricsLine, stays_json_when_a_value_is_not_a_number_or_not_text) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(metrics_line(1, {{"a", nan},
                             {"b", infinity},
                             {"c", std::vector<double>{-infinity, 0.0}},
                             {"d", LayerRows{std::vector<double>{nan, 1.5}, std::nullopt, std::vector<double>{}}},
                             {"e", LayerNumbers{std::nullopt, 2.0}}}),
            "{\"step\":1,\"a\":\"NaN\",\"b\":\"Infinity\",\"c\":[\"-Infinity\",0.0],"
            "\"d\":[[\"NaN\",1.5],null,[]],\"e\":[null,2.0]}\n");
  EXPECT_EQ(metrics_line(1, {{"path", "a\xff\"b"}}), "{\"step\":1,\"path\":\"a\xef\xbf\xbd\\\"b\"}\n");
}

// Oracle: strtod of the C library. Bit patterns of every exponent, subnormal ones included.
TEST(MetricsLine, numbers_read_back_to_the_same_bits) {
  const unsigned seed = 20240521;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 20000; ++i) {
    const auto value = std::bit_cast<double>(random());
    if (!std::isfinite(value)) continue;
    const std::string line = metrics_line(1, {{"x", value}});
    const double back = std::strtod(line.c_str() + line.find("\"x\":") + 4, nullptr);
    ASSERT_EQ(std::bit_cast<uint64_t>(back), std::bit_cast<uint64_t>(value)) << line;
  }
}

TEST(MetricsLog, a_resumed_run_has_each_step_once) {
  TemporaryFolder folder;
  const auto file = folder / "metrics.jsonl";
  {
    MetricsLog log(file, 0);
    for (int64_t step = 1; step <= 5; ++step) log.write(step, {{"run", int64_t{1}}});
  }
  {
    MetricsLog log(file, 3);  // the newest checkpoint was of step 3
    for (int64_t step = 4; step <= 6; ++step) log.write(step, {{"run", int64_t{2}}});
  }
  EXPECT_EQ(content(file),
            "{\"step\":1,\"run\":1}\n{\"step\":2,\"run\":1}\n{\"step\":3,\"run\":1}\n"
            "{\"step\":4,\"run\":2}\n{\"step\":5,\"run\":2}\n{\"step\":6,\"run\":2}\n");
}

TEST(MetricsLog, a_run_from_the_start_begins_an_empty_file) {
  TemporaryFolder folder;
  const auto file = folder / "metrics.jsonl";
  put(file, "{\"step\":1}\n{\"step\":2}\n");
  { MetricsLog log(file, 0); }
  EXPECT_EQ(content(file), "");
}

// What a crash, a full disk or an editor may have left behind. Kept: the whole records before the damage.
TEST(MetricsLog, damage_ends_the_part_that_is_kept) {
  const std::string whole = "{\"step\":1}\n{\"step\":2}\n";
  for (const std::string& damage :
       {std::string("{\"step\":3,\"lo"), std::string("{\"step\":3}"), std::string("\n"), std::string("nonsense\n"),
        std::string("[3]\n"), std::string("{\"loss\":1}\n"), std::string("{\"step\":\"3\"}\n"),
        std::string("{\"step\":2}\n"), std::string(16, '\0')}) {
    TemporaryFolder folder;
    const auto file = folder / "metrics.jsonl";
    put(file, whole + damage);
    MetricsLog log(file, 10);
    log.write(11, {});
    EXPECT_EQ(content(file), whole + "{\"step\":11}\n") << "damage: " << damage;
  }
}

// A bit that flipped in a line costs that line: the records after it stay.
TEST(MetricsLog, damage_between_records_takes_no_other_with_it) {
  const std::string before = "{\"step\":1}\n", after = "{\"step\":3}\n{\"step\":4}\n";
  for (const std::string& damage :
       {std::string("{\"step\":2,\"lo\n"), std::string("{\"step\":700000}\n"), std::string("{\"step\":-2}\n"),
        std::string("\n"), std::string("{\"step\":1}\n"), std::string(16, '\0') + "\n"}) {
    TemporaryFolder folder;
    const auto file = folder / "metrics.jsonl";
    put(file, before + damage + after + "{\"step\":5}\n{\"step\":2}\n{\"step\":6}\n");
    MetricsLog log(file, 4);
    EXPECT_EQ(content(file), before + damage + after) << "damage: " << damage;
  }
}

TEST(MetricsLog, a_full_disk_costs_records_but_never_a_line_cut_short) {
  TemporaryFolder folder;
  const auto file = folder / "metrics.jsonl";
  MetricsLog log(file, 0);
  {
    FileSizeLimit full(35);  // lines have 11 bytes: the fourth write comes up short after 2 of them
    for (int64_t step = 1; step <= 6; ++step) log.write(step, {});
  }
  EXPECT_EQ(content(file), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
  log.write(7, {});  // there is room again
  EXPECT_EQ(content(file), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"step\":7}\n");
}

TEST(AppendFile, counts_what_it_had_to_drop) {
  AppendFile full("/dev/full");  // a device whose writes fail with "no space left" (full(4))
  EXPECT_FALSE(full.append("a"));
  EXPECT_FALSE(full.append("b"));
  EXPECT_EQ(full.dropped(), 2);
}

TEST(MetricsLog, a_file_that_cannot_be_opened_is_an_error_at_once) {
  TemporaryFolder folder;
  EXPECT_THROW(MetricsLog(folder / "missing/metrics.jsonl", 0), std::system_error);
}

}  // namespace
}  // namespace conclave
