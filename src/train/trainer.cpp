#include "train/trainer.h"

#include <chrono>
#include <cmath>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "checkpoint/checkpoint_folder.h"
#include "config/mixtral_parameters.h"
#include "config/model_flops.h"
#include "data/fingerprint.h"
#include "memory/memory_category.h"
#include "metrics/running_memory.h"
#include "optim/learning_rate.h"
#include "train/compute_precision.h"

namespace conclave {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<double> to_list(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

// The metrics of a run that left no checkpoint are put aside, not overwritten.
void put_aside(const std::filesystem::path& file) {
  if (!std::filesystem::exists(file) || std::filesystem::file_size(file) == 0) return;
  for (int n = 1;; ++n) {
    std::filesystem::path aside = file;
    aside += fmt::format(".{}", n);
    if (std::filesystem::exists(aside)) continue;
    std::filesystem::rename(file, aside);
    spdlog::info("an earlier run without a checkpoint was here; its metrics are kept as {}", aside.string());
    return;
  }
}

}  // namespace

Trainer::Trainer(ParallelJob& job)
    : job_(job),
      training_(open_training(job)),
      forward_backward_(job.model(), job.job(), {job.aux_coefficient(), job.job().moe.moe_z_loss_coeff}) {
  if (job.job().data.validation) validation_ = open_validation(job);
  start();
}

void Trainer::start() {
  const Job& job = job_.job();
  const std::string data_fingerprint = fingerprint(training_->set());
  const auto checkpoint = checkpoint_to_resume(job);
  job_.model().allocate_parameters();
  job_.model().allocate_training_state();
  position_.data_fingerprint = data_fingerprint;
  if (checkpoint) {
    position_ = load_training_state(job_, *checkpoint, data_fingerprint);
    spdlog::info("going on after step {} from {}", position_.step, checkpoint->string());
  } else {
    start_parameters(job_);
  }

  spdlog::info(
      "{} parameters, {} used by each token; {} tokens a step in {} micro-steps; {} samples an epoch; computing in {} "
      "on {}",
      count_parameters(job_.model().declarations()),
      count_parameters_per_token(job_.model().declarations(), job_.model_config()), job_.tokens_per_step(),
      job_.micro_steps(), training_->samples_per_epoch(), precision_name(job_.compute()), job_.device().str());
  flops_per_token_ = training_flops_per_token(job_.model_config(), job.data.sequence_length);
  peak_flops_per_second_ = job_.sum_over_world({measure_product_rate(job_.compute(), job_.device())})[0];
  spdlog::info("ready; no rank held more than {:.1f} MiB so far", job_.most_resident_mebibytes());
  if (!job_.is_first()) return;
  std::filesystem::create_directories(job.run.output_dir);
  write_file_atomically(resolved_job_file(job), print_job(job));
  if (position_.step == 0) put_aside(metrics_file(job));
  metrics_ = std::make_unique<MetricsLog>(metrics_file(job), position_.step);
  if (job.metrics.tensorboard) tensorboard_ = std::make_unique<TensorBoardLog>(tensorboard_folder(job), position_.step);
  progress_ = std::make_unique<ProgressLine>(job.run.steps, job.metrics.log_every, stdout);
}

void Trainer::run() {
  const Job& job = job_.job();
  if (position_.step >= job.run.steps) {
    spdlog::info("all {} steps are done already; raise run.steps to train on", job.run.steps);
    return;
  }
  TrainStep train_step(job_, forward_backward_);
  BatchLoader loader(training_, {job.data.micro_batch_size, job_.micro_steps(), job_.world().size(), job_.rank()},
                     position_.step);
  while (position_.step < job.run.steps) {
    const int64_t step = position_.step + 1;
    const double lr = learning_rate(job.schedule, job.optimizer.lr, job.run.steps, step);
    const auto start = std::chrono::steady_clock::now();
    const StepReport step_report = train_step.run(loader, position_.updates + 1, lr);
    const double seconds = seconds_since(start);
    position_.step = step;
    if (step_report.not_finite.empty()) ++position_.updates;

    last_validation_.reset();
    if (validation_ && job.validation.every > 0 && (step % job.validation.every == 0 || step == job.run.steps))
      validate(step);
    report(step, step_report, lr, seconds);
    if (!step_report.not_finite.empty()) {
      if (progress_) progress_->end_line();
      if (job_.is_first())
        spdlog::warn("step {} was skipped on all ranks: not finite: {}", step, step_report.not_finite);
      if (++skipped_in_a_row_ >= job.optimizer.max_skipped_steps)
        throw std::runtime_error(
            fmt::format("{} steps in a row were not finite (optimizer.max_skipped_steps), the last one step {}: {}",
                        skipped_in_a_row_, step, step_report.not_finite));
    } else {
      skipped_in_a_row_ = 0;
    }
    if (job.checkpoint.every > 0 && (step % job.checkpoint.every == 0 || step == job.run.steps)) save(step);
  }
  if (progress_) progress_->end_line();
}

void Trainer::validate(int64_t step) {
  last_validation_ = evaluate(job_, forward_backward_, validation_, job_.job().validation.batches);
  if (progress_) progress_->end_line();
  spdlog::info("step {}: validation loss {:.4f} over {} tokens", step, last_validation_->lm_loss,
               last_validation_->targets);
}

void Trainer::save(int64_t step) {
  const std::filesystem::path saved = save_training_state(job_, position_);
  if (!job_.is_first()) return;
  progress_->end_line();
  spdlog::info("step {}: saved {}", step, saved.string());
  prune_checkpoints(checkpoints_folder(job_.job()), job_.job().checkpoint.keep);
}

void Trainer::report(int64_t step, const StepReport& step_report, double lr, double seconds) {
  const MemoryReport memory = memory_report();
  const auto seconds_in = [&](Phase phase) { return total_seconds(step_report.times, phase); };
  // The rank that needs most memory, and the rank that waited longest, are what limits the run.
  std::vector<double> extremes = {static_cast<double>(memory.at_peak.total),
                                  static_cast<double>(running_memory().peak_resident_bytes),
                                  seconds_in(Phase::gather),
                                  seconds_in(Phase::reduce),
                                  seconds_in(Phase::dispatch),
                                  seconds_in(Phase::data),
                                  seconds_in(Phase::offload)};
  extremes = job_.max_over_world(std::move(extremes));
  if (!job_.is_first()) return;

  const double tokens_per_second = static_cast<double>(job_.tokens_per_step()) / seconds;
  MetricsRecord record = {{"loss", step_report.loss},
                          {"lm_loss", step_report.lm_loss},
                          {"aux_loss", step_report.aux_loss},
                          {"z_loss", step_report.z_loss},
                          {"grad_norm", step_report.gradient_norm},
                          {"lr", lr},
                          {"tokens", step * job_.tokens_per_step()},
                          {"tokens_per_second", tokens_per_second},
                          {"step_seconds", seconds},
                          {"data_seconds", extremes[5]},
                          {"gather_wait_seconds", extremes[2]},
                          {"reduce_wait_seconds", extremes[3]},
                          {"dispatch_wait_seconds", extremes[4]},
                          {"offload_wait_seconds", extremes[6]},
                          {"peak_memory_bytes", static_cast<int64_t>(extremes[0])},
                          {"peak_resident_bytes", static_cast<int64_t>(extremes[1])},
                          {"expert_imbalance", step_report.expert_imbalance}};
  const at::Tensor& count_LE = step_report.count_LE;
  record.emplace_back("expert_imbalance_by_layer", to_list(std::get<0>(count_LE.max(1)) / count_LE.mean(1)));
  record.emplace_back("expert_share", to_list(count_LE.sum(0) / count_LE.sum()));  // of all layers' choices, by expert
  const auto mfu = model_flops_utilization(flops_per_token_, tokens_per_second, peak_flops_per_second_);
  record.emplace_back("mfu", mfu ? MetricValue(*mfu) : MetricValue());
  record.emplace_back("skipped", static_cast<int64_t>(!step_report.not_finite.empty()));
  Progress progress;
  for (int category = 0; category < memory_categories; ++category) {
    const char* name = name_of(static_cast<MemoryCategory>(category));
    record.emplace_back(fmt::format("memory/{}", name), memory.at_peak.of[category]);
    progress.memory_of.emplace_back(name, memory.at_peak.of[category]);
  }
  if (last_validation_) record.emplace_back("validation_loss", last_validation_->lm_loss);
  metrics_->write(step, record);
  if (tensorboard_) tensorboard_->write(step, record);

  progress.step = step;
  progress.loss = step_report.loss;
  progress.grad_norm = step_report.gradient_norm;
  progress.lr = lr;
  progress.tokens_per_second = tokens_per_second;
  progress.step_seconds = seconds;
  progress.expert_imbalance = step_report.expert_imbalance;
  progress.peak_memory_bytes = static_cast<int64_t>(extremes[0]);
  progress_->show(progress);
}

}  // namespace conclave
