// Lists of names and patterns. Oracle: what is written here by hand; for patterns also a plain recursive matcher.
#include "config/name_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "config/job_difference.h"
#include "config/job_file.h"
#include "refused.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

Job job_with(const std::string& freeze) {
  const TemporaryFile file("job.yaml", "run: {output_dir: out}\nmodel: {config: m}\ntrain: {freeze: " + freeze + "}\n");
  return read_job(file.path());
}

TEST(NameList, is_a_list_or_one_name) {
  EXPECT_THAT(job_with("[a.b, '*.c']").train.freeze.names, ElementsAre("a.b", "*.c"));
  EXPECT_THAT(job_with("a.b").train.freeze.names, ElementsAre("a.b"));
  EXPECT_TRUE(job_with("[]").train.freeze.empty());
  EXPECT_TRUE(job_with("null").train.freeze.empty());
}

TEST(NameList, reads_back_as_it_is_printed) {
  for (const std::string given : {"[]", "[a]", "['*.mlp.gate.weight', 'x, y', \"it's\", 'true', '12']"}) {
    const Job job = job_with(given);
    const Job again = job_from_overrides({"train.freeze=" + values_of(job).at("train.freeze")});
    EXPECT_EQ(again.train.freeze, job.train.freeze) << given;
  }
}

TEST(NameList, refuses_what_is_no_name) {
  EXPECT_THAT(refusal_of([] { job_with("{a: b}"); }), HasSubstr("a name, or a list of names"));
  EXPECT_THAT(refusal_of([] { job_with("[a, [b]]"); }),
              HasSubstr("train.freeze is a list, but a list in it is no name"));
  EXPECT_THAT(refusal_of([] { job_with("[a, '']"); }), HasSubstr("is no name"));
}

bool matches_plainly(const std::string& pattern, const std::string& name) {
  if (pattern.empty()) return name.empty();
  if (pattern[0] == '*')
    return matches_plainly(pattern.substr(1), name) || (!name.empty() && matches_plainly(pattern, name.substr(1)));
  return !name.empty() && (pattern[0] == '?' || pattern[0] == name[0]) &&
         matches_plainly(pattern.substr(1), name.substr(1));
}

TEST(NamePattern, fits_whole_names) {
  EXPECT_TRUE(matches("model.layers.*.mlp.gate.weight", "model.layers.11.mlp.gate.weight"));
  EXPECT_TRUE(matches("*.gate.weight", "a.gate.gate.weight"));
  EXPECT_FALSE(matches("gate", "a.gate"));
  EXPECT_FALSE(matches("a.gate", "a.gate.weight"));
  EXPECT_FALSE(matches("model.layers.?.x", "model.layers.10.x"));
}

TEST(NamePattern, is_as_a_plain_matcher_has_it) {
  constexpr uint32_t seed = 5;
  std::mt19937 random(seed);
  const auto text = [&](const char* letters, uint32_t kinds) {
    std::string drawn(random() % 7, ' ');
    for (char& letter : drawn) letter = letters[random() % kinds];
    return drawn;
  };
  for (int i = 0; i < 20000; ++i) {
    const std::string pattern = text("ab*?", 4), name = text("ab", 2);
    ASSERT_EQ(matches(pattern, name), matches_plainly(pattern, name)) << pattern << " on " << name << ", seed " << seed;
  }
}

}  // namespace
}  // namespace conclave
