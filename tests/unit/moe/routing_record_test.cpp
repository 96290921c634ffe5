// routing.bin. Oracle of what is read: what was written. Of the format: bytes written here by hand.
#include "moe/routing_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <random>

#include "base/error.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

class RoutingFile : public ::testing::Test {
 protected:
  ~RoutingFile() override { std::filesystem::remove(path_); }
  const std::filesystem::path& with(const std::string& content) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << content;
    return path_;
  }
  std::string refusal(const std::string& content) {
    try {
      const RoutingRecord record(with(content));
      if (!record.damage().empty()) return record.damage();
      for (size_t i = 0; i < record.steps().size(); ++i) record.rows(i);
      return "";
    } catch (const UserError& error) {
      return error.what();
    }
  }

 private:
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("conclave-routing-" + std::to_string(::getpid()) + ".bin");
};

// Each token's choices fall somewhere: on one expert alone, evenly, or anyhow.
RecordedRows draw_rows(std::mt19937& random, const RoutingShape& shape) {
  const auto below = [&](int64_t end) { return static_cast<int64_t>(random() % static_cast<uint64_t>(end)); };
  RecordedRows rows{1 + below(3), 1 + below(4), 1 + below(3) * below(2000), {}};
  for (int64_t i = 0; i < rows.micro_steps * rows.ranks * shape.layers; ++i) {
    std::vector<int32_t> of_expert(static_cast<size_t>(shape.experts));
    const int64_t kind = below(3);
    for (int64_t row = 0; row < rows.tokens * shape.choices; ++row)
      ++of_expert[static_cast<size_t>(kind == 0 ? 0 : kind == 1 ? row % shape.experts : below(shape.experts))];
    rows.of_source.insert(rows.of_source.end(), of_expert.begin(), of_expert.end());
  }
  return rows;
}

TEST_F(RoutingFile, gives_back_what_was_written) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 random(seed);
    const int64_t experts = 1 + random() % 9;
    const RoutingShape shape{1 + static_cast<int64_t>(random() % 3), experts,
                             1 + static_cast<int64_t>(random() % experts)};
    std::string content = routing_head(shape);
    std::vector<RecordedRows> written;
    for (int64_t step = 7; step < 7 + static_cast<int64_t>(random() % 5); ++step) {
      written.push_back(draw_rows(random, shape));
      content += routing_record(shape, step, written.back());
    }
    const RoutingRecord record(with(content));
    EXPECT_EQ(record.shape(), shape);
    EXPECT_EQ(record.damage(), "");
    EXPECT_EQ(record.unfinished_bytes(), 0u);
    ASSERT_EQ(record.steps().size(), written.size());
    for (size_t i = 0; i < written.size(); ++i) {
      EXPECT_EQ(record.steps()[i].step, 7 + static_cast<int64_t>(i));
      EXPECT_EQ(record.rows(i), written[i]);
    }
    EXPECT_EQ(record.bytes_until(6), routing_head(shape).size());
    EXPECT_EQ(record.bytes_until(1000), content.size());
  }
}

// 2 ranks of 3 tokens, a layer of 2 experts, one choice: 3 and 0 rows, then 1 and 2. Differences to the source before,
// zigzag: expert 0: 3, -2 are 6, 3; expert 1: 0, 2 are 0, 4.
TEST_F(RoutingFile, has_the_bytes_that_the_header_describes) {
  const std::string record = routing_record({1, 2, 1}, 9, {1, 2, 3, {3, 0, 1, 2}});
  EXPECT_EQ(record.substr(0, 8), std::string("step\4\0\0\0", 8));
  EXPECT_EQ(record.substr(8, 8), std::string("\x09\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(record.substr(16, 16), std::string("\2\0\0\0\1\0\0\0\3\0\0\0\0\0\0\0", 16));
  EXPECT_EQ(record.substr(48), std::string("\6\3\0\4", 4));
  EXPECT_EQ(routing_head({32, 8, 2}), "conclave routing 1, 32 layers, 8 experts, 2 choices\n");
}

std::string three_steps(const RoutingShape& shape) {
  std::mt19937 random(3);
  std::string content = routing_head(shape);
  for (int64_t step = 1; step <= 3; ++step) content += routing_record(shape, step, draw_rows(random, shape));
  return content;
}

// A killed run leaves a prefix of the file. Whole steps are read from it, wherever it ends.
TEST_F(RoutingFile, that_ends_anywhere_gives_the_whole_steps) {
  const RoutingShape shape{2, 3, 2};
  const std::string content = three_steps(shape);
  const RoutingRecord whole(with(content));
  const std::vector<RoutingRecord::Step> steps = whole.steps();
  ASSERT_EQ(steps.size(), 3u);
  for (size_t length = routing_head(shape).size(); length < content.size(); ++length) {
    const RoutingRecord record(with(content.substr(0, length)));
    SCOPED_TRACE(::testing::Message() << length << " bytes");
    EXPECT_EQ(record.damage(), "");
    size_t expected = 0;
    while (expected < 3 && steps[expected].begin + steps[expected].bytes <= length) ++expected;
    ASSERT_EQ(record.steps().size(), expected);
    EXPECT_EQ(record.bytes_until(3) + record.unfinished_bytes(), length);
    if (expected > 0) {
      EXPECT_EQ(record.rows(expected - 1).of_source.size() % 6, 0u);
    }
  }
  for (size_t length = 0; length < routing_head(shape).size(); ++length)
    EXPECT_THAT(refusal(content.substr(0, length)), HasSubstr("is not a record of routing"));
}

TEST_F(RoutingFile, with_any_byte_changed_is_refused_by_name_and_place) {
  const RoutingShape shape{1, 3, 2};
  const std::string content = three_steps(shape);
  for (size_t at = 0; at < content.size(); ++at)
    for (const char flip : {'\x01', '\x80'}) {
      std::string changed = content;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      const std::string said = refusal(changed);
      EXPECT_THAT(said, HasSubstr(".bin")) << "byte " << at;
      if (at >= routing_head(shape).size()) {
        EXPECT_THAT(said, HasSubstr("The file is damaged")) << "byte " << at;
      }
    }
}

TEST_F(RoutingFile, of_something_else_is_refused) {
  EXPECT_THAT(refusal(""), HasSubstr("is not a record of routing"));
  EXPECT_THAT(refusal(R"({"step":1,"loss":2.5})"), HasSubstr("is not a record of routing"));
  EXPECT_THAT(refusal("conclave routing 2, 1 layers, 2 experts, 1 choices\n"), HasSubstr("is not a record"));
  EXPECT_THAT(refusal("conclave routing 1, 0 layers, 2 experts, 1 choices\n"), HasSubstr("is not a record"));
  EXPECT_THAT(refusal("conclave routing 1, 1 layers, 2 experts, 3 choices\n"), HasSubstr("is not a record"));
  EXPECT_THROW(RoutingRecord("/nowhere/routing.bin"), UserError);
  EXPECT_THROW(RoutingRecord(std::filesystem::temp_directory_path()), UserError);
  const RoutingShape shape{1, 2, 1};
  const std::string later = routing_record(shape, 5, {1, 1, 3, {1, 2}}),
                    earlier = routing_record(shape, 5, {1, 1, 3, {1, 2}});
  EXPECT_THAT(refusal(routing_head(shape) + later + earlier), HasSubstr("step 5 follows step 5"));
  EXPECT_THAT(refusal(routing_head(shape) + routing_record(shape, 1, {1, 1, 3, {1, 1}})), HasSubstr("each chooses 1"));
  EXPECT_THAT(refusal(routing_head(shape) + routing_record(shape, 1, {1, 1, 3, {4, -1}})), HasSubstr("-1 rows"));
  EXPECT_THAT(refusal(routing_head(shape) + later + "something"), HasSubstr("no record begins here"));
}

}  // namespace
}  // namespace conclave
