#include "step/train_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace conclave {

MicroBatch to_micro_batch(const LoadedBatch& loaded, int64_t sequence, at::Device device) {
  const int64_t tokens = loaded.samples * sequence;  // rows without a sample are left out
  const auto tensor = [&](const std::vector<int64_t>& values) {
    return at::from_blob(const_cast<int64_t*>(values.data()), {tokens}, at::kLong)
        .to(device, at::kLong, /*non_blocking=*/true, /*copy=*/true);
  };
  MicroBatch batch{tensor(loaded.inputs_BS), tensor(loaded.targets_BS), loaded.samples, sequence, {}, loaded.source_B};
  for (int64_t b = 0; b < loaded.samples; ++b) batch.sample_of_B.push_back(loaded.first_sample + b);
  if (!loaded.document_ends.empty())
    batch.documents = std::make_shared<const Documents>(documents_of(loaded.document_ends, sequence, device));
  return batch;
}

std::function<MicroBatch()> batches_of(BatchLoader& loader, const ParallelJob& job) {
  return [&loader, sequence = job.job().data.sequence_length, device = job.device()] {
    return to_micro_batch(loader.next(), sequence, device);
  };
}

TrainStep::TrainStep(ParallelJob& job, ForwardBackward& forward_backward)
    : job_(job),
      forward_backward_(forward_backward),
      optimizer_(make_optimizer_rule(job.settings().optimizer), job.settings().optimizer.grad_clip,
                 job.model().optimizer_units()) {
  forward_backward.reserve_offload(job.settings().tokens_per_micro_step);
}

StepReport TrainStep::run(const NextBatch& next, const std::vector<int64_t>& targets_of_source, int64_t update,
                          double lr, const std::function<void()>& before_update) {
  StepClock& clock = forward_backward_.clock();
  clock.take();  // what evaluation took in between
  StepReport report = compute(next, targets_of_source, update, lr, before_update);
  report.times = clock.take();
  return report;
}

StepReport TrainStep::compute(const NextBatch& next, const std::vector<int64_t>& targets_of_source, int64_t update,
                              double lr, const std::function<void()>& before_update) {
  StepClock& clock = forward_backward_.clock();
  const ClockScope whole_step(clock, Phase::computing, clock.whole_step());
  const StepSettings& settings = job_.settings();
  const int64_t micro_steps = settings.micro_steps;
  StepReport report;
  report.targets = std::accumulate(targets_of_source.begin(), targets_of_source.end(), int64_t{0});
  if (targets_of_source.size() > 1)
    for (const int64_t targets : targets_of_source) report.sources.push_back({targets, 0});
  const auto targets = static_cast<double>(std::max<int64_t>(report.targets, 1));  // of none the gradient is 0
  double loss_sum = 0;
  std::vector<double> sum_of_source(report.sources.size());
  for (int64_t m = 0; m < micro_steps; ++m) {
    const MicroBatch batch = [&] {
      const ClockScope scope(clock, Phase::data, clock.whole_step());
      return next();
    }();
    const MicroStepResult result = forward_backward_.train(
        batch, {m == 0, m == micro_steps - 1, 1.0 / targets, 1.0 / static_cast<double>(micro_steps)});
    loss_sum += result.loss_sum;
    for (size_t b = 0; b < batch.source_of_B.size(); ++b)
      sum_of_source[static_cast<size_t>(batch.source_of_B[b])] += result.loss_of_part[b];
    report.aux_loss += result.balance.aux_loss / static_cast<double>(micro_steps);
    report.z_loss += result.balance.z_loss / static_cast<double>(micro_steps);
    if (settings.capacity.factor > 0) {
      const ModelConfig& model = job_.model_config();
      const int64_t capacity =
          expert_capacity(settings.capacity.factor, result.balance.tokens, model.top_k(), model.experts());
      report.drop_rate += drop_rate(result.balance.count_LE, capacity) / static_cast<double>(micro_steps);
    }
    if (result.balance.count_LE.defined()) report.load.add(result.balance);
    if (settings.records_routing) report.own_rows_LE.push_back(result.balance.own_count_LE.to(at::kInt));
  }
  {
    const ClockScope scope(clock, Phase::reduce, clock.whole_step());
    sum_losses(report, loss_sum, std::move(sum_of_source));
  }
  report.loss = report.lm_loss + settings.aux_coefficient * report.aux_loss + settings.z_coefficient * report.z_loss;

  // Every rank has the same numbers here, so all skip or none does.
  update_unless_not_finite(report, update, lr, before_update);
  return report;
}

void TrainStep::sum_losses(StepReport& report, double loss_sum, std::vector<double> sum_of_source) {
  sum_of_source.push_back(loss_sum);
  const std::vector<double> sums = job_.sum_over_world(sum_of_source);
  report.lm_loss = sums.back() / static_cast<double>(std::max<int64_t>(report.targets, 1));
  for (size_t s = 0; s < report.sources.size(); ++s) report.sources[s].loss_sum = sums[s];
}

void TrainStep::update_unless_not_finite(StepReport& report, int64_t update, double lr,
                                         const std::function<void()>& before_update) {
  StepClock& clock = forward_backward_.clock();
  const ClockScope scope(clock, Phase::optimizer, clock.whole_step());
  const std::vector<double> squares = optimizer_.gradient_squares(job_.axes().world(), job_.device());
  double square_sum = 0;
  std::vector<std::string> units;
  for (size_t i = 0; i < squares.size(); ++i) {
    square_sum += squares[i];
    if (!std::isfinite(squares[i])) units.push_back(job_.model().declarations()[i].name);
  }
  report.gradient_norm = std::sqrt(square_sum);
  if (!std::isfinite(report.loss)) {
    report.not_finite = "loss";
  } else if (!units.empty()) {
    report.not_finite = fmt::format("gradient of {}", fmt::join(units, ", "));
  } else {
    before_update();
    optimizer_.update(lr, update, report.gradient_norm);
    if (!report.load.is_empty()) forward_backward_.finish_step(report.load.count_LE());
  }
}

}  // namespace conclave
