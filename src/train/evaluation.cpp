#include "train/evaluation.h"

#include <algorithm>

#include "data/batch_loader.h"
#include "train/train_step.h"

namespace conclave {

std::shared_ptr<const SampleStream> open_validation(const ParallelJob& job) {
  auto set = std::make_shared<const IndexedTokens>(job.job().data.validation.value(), job.model_config().vocab_size);
  return std::make_shared<const SampleStream>(std::move(set), job.job().data.sequence_length,
                                              static_cast<uint64_t>(job.job().run.seed), Order::in_order);
}

EvaluationResult evaluate(ParallelJob& job, ForwardBackward& forward_backward,
                          const std::shared_ptr<const SampleStream>& stream, int64_t batches) {
  const int64_t sequences = job.sequences_per_micro_step();
  const int64_t sequence_length = stream->sequence_length();
  int64_t samples = stream->samples_per_epoch();
  if (batches > 0) samples = std::min(samples, batches * sequences);
  const int64_t micro_steps = (samples + sequences - 1) / sequences;
  BatchLoader loader(stream, {job.job().data.micro_batch_size, 1, job.world().size(), job.rank()}, 0, samples);
  double loss_sum = 0;
  EvaluationResult result;
  for (int64_t m = 0; m < micro_steps; ++m) {
    const MicroStepResult micro_step =
        forward_backward.evaluate(to_micro_batch(loader.next(), sequence_length, job.device()));
    loss_sum += micro_step.loss_sum;
    result.aux_loss += micro_step.balance.aux_loss / static_cast<double>(micro_steps);
  }
  result.targets = samples * sequence_length;
  result.lm_loss = job.sum_over_world({loss_sum})[0] / static_cast<double>(result.targets);
  return result;
}

}  // namespace conclave
