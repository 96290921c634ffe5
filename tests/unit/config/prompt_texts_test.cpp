#include "config/prompt_texts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/job_file.h"
#include "refused.h"

namespace conclave {
namespace {

using testing::HasSubstr;

Job job_with(const std::string& prompts) {
  return job_from_overrides(
      {"validation.prompts=" + prompts, "validation.every=5", "data.validation=v", "validation.tokenizer=t"});
}

TEST(PromptTexts, are_a_text_or_a_list_and_read_back_as_they_are_printed) {
  const std::vector<std::string> texts = {"def ", "a \"b\"\n\tc: [d], #e", "12", "null"};
  const Job job = job_with(R"(["def ", "a \"b\"\n\tc: [d], #e", 12, 'null'])");
  EXPECT_EQ(job.validation.prompts->texts, texts);
  EXPECT_EQ(job_with(print_value(*job.validation.prompts)).validation.prompts->texts, texts);
  EXPECT_EQ(job_with("once").validation.prompts->texts, std::vector<std::string>{"once"});
  EXPECT_FALSE(job_with("null").validation.prompts.has_value());
}

TEST(PromptTexts, that_are_none_are_refused) {
  EXPECT_THAT(refusal_of([] { job_with("[]"); }), HasSubstr("validation.prompts is a list, but it is empty"));
  EXPECT_THAT(refusal_of([] { job_with("[[a]]"); }), HasSubstr("but it must be a text, or a list of texts"));
  EXPECT_THAT(refusal_of([] { job_with("['']"); }), HasSubstr("a prompt must have a letter"));
  EXPECT_THAT(refusal_of([] { job_with("{a: b}"); }), HasSubstr("a text, or a list of texts"));
}

TEST(PromptTexts, need_validations_and_a_tokenizer) {
  EXPECT_THAT(refusal_of([] {
                job_from_overrides({"validation.prompts=a", "validation.tokenizer=t"});
              }),
              HasSubstr("validation.every is 0"));
  EXPECT_THAT(refusal_of([] {
                job_from_overrides({"validation.prompts=a", "validation.every=5", "data.validation=v"});
              }),
              HasSubstr("Set validation.tokenizer"));
}

}  // namespace
}  // namespace conclave
