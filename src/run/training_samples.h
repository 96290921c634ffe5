// Texts that a model writes while it is trained (validation.prompts): to look at, beside the losses.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "generate/generation.h"
#include "generate/text_coder.h"
#include "metrics/record.h"
#include "step/parallel_job.h"

namespace conclave {

class TrainingSamples {
 public:
  // `coder`: rank 0's; null on the others. Both references outlive it. Collective; UserError on all ranks when a prompt
  // does not fit the model.
  TrainingSamples(ParallelJob& job, ExpertSelection& selection, std::unique_ptr<TextCoder> coder);

  // Each prompt with the text that follows it, on rank 0, which logs them; on other ranks none. The weights stay as
  // they are, sharded. Collective.
  std::vector<std::string> write(int64_t step);

 private:
  std::vector<std::string> texts_of(const std::vector<GeneratedText>& generated);

  ParallelJob& job_;
  ExpertSelection& selection_;
  std::unique_ptr<TextCoder> coder_;
  std::vector<std::vector<int64_t>> prompts_;
  GenerationOptions options_;
};

// As "sample/0", "sample/1", ...
void append_samples(MetricsRecord& record, const std::vector<std::string>& samples);

}  // namespace conclave
