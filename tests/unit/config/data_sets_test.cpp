// Data sets of a job as users write them. Oracle: the values and sentences that we want, written here by hand.
#include "config/data_sets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/job_check.h"
#include "config/job_difference.h"
#include "config/job_file.h"
#include "refused.h"

namespace conclave {
namespace {

using testing::HasSubstr;
using Sets = std::vector<DataSet>;

Job job_with(const std::string& data, const std::vector<std::string>& overrides = {}) {
  const TemporaryFile file("job.yaml", "run: {output_dir: out}\nmodel: {config: m}\ndata: " + data + "\n");
  return read_job(file.path(), overrides);
}

TEST(DataSets, of_training_are_a_prefix_or_a_list) {
  EXPECT_EQ(job_with("{train: a/b}").data.train.sets, (Sets{{"b", "a/b", 1}}));
  EXPECT_EQ(job_with("{train: [a/b]}").data.train.sets, (Sets{{"b", "a/b", 1}}));
  EXPECT_EQ(job_with("{train: [a/b, {path: c.bin, weight: 0.25}, {name: n, path: c, weight: 3}]}").data.train.sets,
            (Sets{{"b", "a/b", 1}, {"c", "c.bin", 0.25}, {"n", "c", 3}}));
  EXPECT_EQ(job_with("{train: a}", {"data.train=[{path: x, weight: 2}, y]"}).data.train.sets,
            (Sets{{"x", "x", 2}, {"y", "y", 1}}));
  EXPECT_TRUE(job_with("{train: null}").data.train.empty());
}

TEST(DataSets, of_validation_are_a_prefix_names_or_a_list) {
  EXPECT_EQ(job_with("{validation: a/b}").data.validation->sets, (Sets{{"b", "a/b", 1}}));
  EXPECT_FALSE(job_with("{validation: a/b}").data.validation->is_named());
  EXPECT_EQ(job_with("{validation: {code: a/b, chat: c}}").data.validation->sets,
            (Sets{{"code", "a/b", 1}, {"chat", "c", 1}}));
  EXPECT_TRUE(job_with("{validation: {code: a/b}}").data.validation->is_named());
  EXPECT_EQ(job_with("{validation: [a/b, {path: c, name: n}]}").data.validation->sets,
            (Sets{{"b", "a/b", 1}, {"n", "c", 1}}));
  EXPECT_FALSE(job_with("{validation: null}").data.validation.has_value());
}

// The resolved job, and the values that a checkpoint keeps, are read back to the same job.
TEST(DataSets, read_back_as_they_are_printed) {
  for (const std::string data :
       {"{train: a/b, validation: v}",
        "{train: [a/b, {path: 'c d', weight: 0.1, name: c-d}], validation: {x: a, y: 'b c'}}",
        "{train: [{path: a, weight: 7}], validation: {only: a}}", "{train: ['/$$x/y', {path: b, name: true}]}"}) {
    const Job job = job_with(data);
    const TemporaryFile file("job.yaml", print_job(job));
    const Job again = read_job(file.path());
    EXPECT_EQ(again.data.train, job.data.train) << data;
    EXPECT_EQ(again.data.validation, job.data.validation) << data;
    const KeyValues values = values_of(job);
    const Job kept = job_from_overrides(
        {"data.train=" + values.at("data.train"), "data.validation=" + values.at("data.validation")});
    EXPECT_EQ(kept.data.train, job.data.train) << data;
    EXPECT_EQ(kept.data.validation, job.data.validation) << data;
  }
}

TEST(DataSets, that_are_none_are_refused_by_name) {
  const auto refusal = [](const std::string& data) { return refusal_of([&] { job_with(data); }); };
  EXPECT_THAT(refusal("{train: []}"), HasSubstr("data.train is a list, but it is empty"));
  EXPECT_THAT(refusal("{train: [a, {weight: 1}]}"), HasSubstr("data.train is a list, but set 2 has no path."));
  EXPECT_THAT(refusal("{train: [{path: a, wieght: 1}]}"),
              HasSubstr("but set 1 has the unknown key wieght. The keys are path, weight and name."));
  EXPECT_THAT(refusal("{train: [a, {path: b, weight: 0}]}"),
              HasSubstr("data.train is a list in which the weight of set 2 is 0, but it must be more than 0."));
  EXPECT_THAT(refusal("{train: [a, {path: b, weight: two}]}"), HasSubstr("is two, but it must be a number."));
  EXPECT_THAT(refusal("{train: [a, {path: b, weight: .inf}]}"), HasSubstr("the weight of set 2 is .inf"));
  EXPECT_THAT(refusal("{train: [a, [b]]}"), HasSubstr("the path of set 2 is a list, but it must be a path."));
  EXPECT_THAT(refusal("{train: [x/a, y/a]}"), HasSubstr("but two of its sets are called a. Give each a name"));
  EXPECT_THAT(refusal("{train: [a, 'b c']}"), HasSubstr("but \"b c\" (of b c) is no name"));
  EXPECT_THAT(refusal("{validation: [a, {path: b, weight: 2}]}"),
              HasSubstr("but set 2 has the unknown key weight. The keys are path and name."));
  EXPECT_THAT(refusal("{validation: {}}"), HasSubstr("but it is empty"));
  EXPECT_THAT(refusal("{validation: {a: [b]}}"), HasSubstr("the path of a is a list, but it must be a path."));
  EXPECT_THAT(refusal("{validation: {a: x, a: y}}"), HasSubstr("two of its sets are called a"));
}

}  // namespace
}  // namespace conclave
