#include "run/evaluation.h"

#include <fmt/core.h>

#include <algorithm>

#include "base/log.h"
#include "data/batch_loader.h"
#include "step/train_step.h"

namespace conclave {

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

std::vector<EvaluationResult> validate(ParallelJob& job, ForwardBackward& forward_backward,
                                       const std::vector<NamedSet>& sets, int64_t step) {
  const bool named = job.job().data.validation->is_named();
  std::vector<EvaluationResult> results;
  for (const NamedSet& set : sets) {
    results.push_back(evaluate(job, forward_backward, set.stream, job.job().validation.samples));
    spdlog::info("step {}: validation loss {:.4f}{} over {}", step, results.back().lm_loss,
                 named ? fmt::format(" of {}", set.name) : "", samples_in_words(results.back(), *set.stream));
  }
  return results;
}

void append_validation(MetricsRecord& record, const std::vector<NamedSet>& sets,
                       const std::vector<EvaluationResult>& results, bool named) {
  if (results.empty()) return;
  EvaluationResult all;
  double loss_sum = 0;
  for (const EvaluationResult& result : results) {
    loss_sum += result.lm_loss * static_cast<double>(result.targets);
    all.targets += result.targets;
    all.samples += result.samples;
  }
  record.emplace_back("validation_loss",
                      results.size() == 1 ? results[0].lm_loss : loss_sum / static_cast<double>(all.targets));
  record.emplace_back("validation_samples", all.samples);
  if (!named) return;
  for (size_t i = 0; i < results.size(); ++i) {
    record.emplace_back(fmt::format("validation/{}/loss", sets[i].name), results[i].lm_loss);
    record.emplace_back(fmt::format("validation/{}/targets", sets[i].name), results[i].targets);
  }
}

}  // namespace conclave
