#include "run/evaluation.h"

#include <fmt/core.h>

#include <algorithm>

#include "data/batch_loader.h"
#include "step/train_step.h"

namespace conclave {

std::shared_ptr<const SampleStream> open_validation(const ParallelJob& job) {
  auto set = std::make_shared<const IndexedTokens>(job.job().data.validation.value(), job.model_config().vocab_size);
  return std::make_shared<const SampleStream>(std::move(set), job.job().data.sequence_length,
                                              static_cast<uint64_t>(job.job().run.seed), Order::in_order);
}

std::string samples_in_words(const EvaluationResult& result, const SampleStream& stream) {
  const std::string part = result.samples < result.samples_of_set
                               ? fmt::format("the first {} of {}", result.samples, result.samples_of_set)
                               : fmt::format("all {}", result.samples_of_set);
  return fmt::format("{} samples of {} ({} tokens)", part, stream.set().prefix().string(), result.targets);
}

EvaluationResult evaluate(ParallelJob& job, ForwardBackward& forward_backward,
                          const std::shared_ptr<const SampleStream>& stream, int64_t samples) {
  const int64_t sequences = job.sequences_per_micro_step();
  const int64_t sequence_length = stream->sequence_length();
  EvaluationResult result;
  result.samples_of_set = stream->samples_per_epoch();
  result.samples = samples > 0 ? std::min(samples, result.samples_of_set) : result.samples_of_set;
  const auto blend = std::make_shared<const Blend>(stream);
  result.targets = blend->content(0, result.samples).all_targets();
  const auto tokens = static_cast<double>(result.samples * sequence_length);
  const int64_t micro_steps = (result.samples + sequences - 1) / sequences;
  BatchLoader loader(blend, {job.job().data.micro_batch_size, job.world().size(), job.rank()}, 0, result.samples);
  double loss_sum = 0;
  for (int64_t m = 0; m < micro_steps; ++m) {
    const MicroStepResult micro_step =
        forward_backward.evaluate(to_micro_batch(loader.next(), sequence_length, job.device()));
    loss_sum += micro_step.loss_sum;
    result.aux_loss += micro_step.balance.aux_loss * static_cast<double>(micro_step.balance.tokens) / tokens;
  }
  result.lm_loss = job.sum_over_world({loss_sum})[0] / static_cast<double>(result.targets);
  return result;
}

}  // namespace conclave
