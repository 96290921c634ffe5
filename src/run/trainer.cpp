#include "run/trainer.h"

#include <chrono>
#include <cmath>
#include <filesystem>

#include "base/atomic_file.h"
#include "base/error.h"
#include "base/log.h"
#include "base/seconds_since.h"
#include "checkpoint/together.h"
#include "config/model_flops.h"
#include "data/document_length.h"
#include "data/fingerprint.h"
#include "device/device.h"
#include "metrics/running_memory.h"
#include "optim/learning_rate.h"
#include "run/abandoned_history.h"
#include "run/checkpoint_values.h"
#include "run/data_position.h"
#include "run/model_source.h"
#include "run/output_place.h"
#include "run/resume_choice.h"
#include "run/run_export.h"
#include "run/same_run.h"
#include "step/compute_precision.h"
#include "step/step_exchange.h"

namespace conclave {

Trainer::Trainer(ParallelJob& job, std::unique_ptr<TextCoder> coder)
    : job_(job),
      training_(open_training(job.job(), job.model_config().vocab_size)),
      validation_(open_validation(job.job(), job.model_config().vocab_size)),
      forward_backward_(job.model(), job.settings()),
      saves_(
          job,
          [this] {
            if (progress_) progress_->end_line();
          },
          [this](const FinishedSave& saved) {
            clock_.count_save(saved.seconds);
            signals_.tell_of_saved(saved.step);
          }),
      dead_experts_(job.model_config().mixtures(), job.model_config().experts()),
      warnings_(job.job(), job.model_config().top_k(), job.model_config().mixture_layers()),
      signals_(job.is_first() ? RunSignals::Voice::speaks : RunSignals::Voice::silent),
      clock_(job.job(), seconds_since_process_start()) {
  start(std::move(coder));
}

void Trainer::start(std::unique_ptr<TextCoder> coder) {
  const Job& job = job_.job();
  together(job_.host_world(), [&] {
    if (!job_.is_first()) return;
    check_output_place(job);
    choose_resume(job);  // a mistake in checkpoint.resume makes no folder
    std::filesystem::create_directories(job.run.output_dir);
    lock_ = std::make_unique<RunLock>(job.run.output_dir);
  });
  if (job.validation.prompts)
    samples_ = std::make_unique<TrainingSamples>(job_, forward_backward_.selection(), std::move(coder));
  job_.model().allocate_parameters();
  job_.model().allocate_training_state();
  if (const auto position = resume(job_, *training_)) {
    position_ = *position;
    restore(forward_backward_.selection(), position_.values);
    restore(dead_experts_, position_.values);
    spdlog::info("going on after step {}", position_.step);
    signals_.tell_of_saved(position_.step);
  } else {
    position_.data_fingerprint = fingerprint(*training_);
    start_parameters(job_);
  }
  forward_backward_.take_parameters();
  first_step_ = position_.step + 1;

  spdlog::info(what_is_computed(job_, job_.model().declarations()));
  if (job_.is_first())
    log_reading(*training_, position_.samples, job.run.steps - position_.step, job_.sequences_per_step());
  spdlog::info(what_is_kept(job));
  if (job.run.stop_after) spdlog::info("the run ends before {} (run.stop_after)", text_of(*job.run.stop_after));
  flops_per_token_ = training_flops_per_token(job_.model_config(), document_length_of_tokens(*training_));
  peak_flops_per_second_ = job_.sum_over_world({measure_product_rate(job_.compute(), job_.device())})[0];
  device_of(job_.device()).reset_peak_memory(job_.device());  // the peak is training's own
  spdlog::info("ready; peak memory per rank so far: {:.1f} MiB", job_.most_resident_mebibytes());
  if (job_.is_first() && position_.step == 0) put_metrics_aside(job);
  routing_ = std::make_unique<RoutingRecorder>(job_, position_.step);
  if (!job_.is_first()) return;
  write_file_atomically(resolved_job_file(job), print_job(job));
  metrics_ = std::make_unique<MetricsLog>(metrics_file(job), position_.step);
  if (job.metrics.tensorboard) tensorboard_ = std::make_unique<TensorBoardLog>(tensorboard_folder(job), position_.step);
  progress_ = std::make_unique<ProgressLine>(job.run.steps, job.metrics.log_every, stdout);
}

void Trainer::profile(ProfiledSteps steps) {
  if (steps.last < first_step_ && job_.is_first())
    spdlog::warn("--profile {}:{}: these steps are done already, so none is profiled", steps.first, steps.last);
  tracer_ = std::make_unique<StepTracer>(job_, forward_backward_.clock(), steps);
}

ExitCode Trainer::run() {
  const Job& job = job_.job();
  if (position_.step >= job.run.steps) {
    spdlog::info("all {} steps are done already; {}", job.run.steps, how_to_train_on(job));
    return exit_success;
  }
  TrainStep train_step(job_, forward_backward_);
  BatchLoader loader(training_, {job.data.micro_batch_size, job_.world().size(), job_.rank()}, position_.samples);
  while (position_.step < job.run.steps) {
    const int64_t step = position_.step + 1;
    const double lr = learning_rate(job.schedule, job.optimizer.lr, job.run.steps, step);
    save_seconds_ = 0;
    if (tracer_) tracer_->before_step(step);
    const auto start = std::chrono::steady_clock::now();
    // A save that is being written reads what the update changes.
    const StepReport step_report = train_step.run(
        batches_of(loader, job_), training_->content(position_.samples, job_.sequences_per_step()).targets,
        position_.updates + 1, lr, [this] { saves_.take_back_memory(); });
    // The update is queued still, but of the step. Copies for a checkpoint have a stream of their own, and go on.
    device_of(job_.device()).finish_computing(job_.device());
    const double seconds = seconds_since(start);
    if (tracer_) tracer_->after_step(step);
    position_.step = step;
    position_.samples += job_.sequences_per_step();
    position_.tokens += job_.tokens_per_step();
    if (step_report.not_finite.empty() && !step_report.load.is_empty())
      dead_experts_.finish_step(step_report.load.count_LE());

    last_validation_.clear();
    last_samples_.clear();
    if (!validation_.empty() && job.validation.every > 0 && (step % job.validation.every == 0 || step == job.run.steps))
      validate(step);
    const Agreed agreed = report(step, step_report, lr, seconds);
    warn(step, step_report);
    count_skipped(step, step_report);

    const bool is_last = step == job.run.steps;
    if (saves_.is_under_way() && !agreed.saving_is_busy) saves_.go_on();
    if (job.checkpoint.saves() && (is_last || agreed.ends()))
      save(RunSaves::Kind::last);
    else if (job.checkpoint.saves() &&
             (agreed.save_is_due || (job.checkpoint.every > 0 && step % job.checkpoint.every == 0)))
      save(RunSaves::Kind::periodic);
    else if (agreed.save_is_due && job_.is_first())
      spdlog::warn("step {} is not saved, though SIGUSR2 asked for it: {}", step, what_is_kept(job));
    if (agreed.ends() && !is_last) return end_early(agreed);
    if (job.checkpoint.export_every > 0 && (is_last || step % job.checkpoint.export_every == 0)) {
      if (progress_) progress_->end_line();
      export_run(job_, step);
      if (const auto lost = lost_in_export(checkpoint_values(forward_backward_.selection())))
        spdlog::warn("step {}: {}", step, *lost);
    }
    clock_.count_iteration(seconds_since(start) - save_seconds_);
  }
  if (progress_) progress_->end_line();
  return exit_success;
}

ExitCode Trainer::end_early(const Agreed& agreed) {
  if (progress_) progress_->end_line();
  const bool by_signal = agreed.stop_signal != 0;
  spdlog::info("{} ended the run after step {}; {}",
               by_signal ? name_of_signal(agreed.stop_signal) : "the deadline (run.stop_after)", position_.step,
               job_.job().checkpoint.saves()
                   ? "the same command goes on from there"
                   : "nothing was saved, for checkpoint.every and checkpoint.every_minutes are 0");
  return by_signal ? exit_code_of_stop(agreed.stop_signal) : exit_requeue;
}

void Trainer::warn(int64_t step, const StepReport& step_report) {
  if (!job_.is_first() || !step_report.not_finite.empty()) return;
  for (const std::string& warning :
       warnings_.after_step(step, step_report.lm_loss, step_report.load.count_LE(), dead_experts_)) {
    progress_->end_line();
    spdlog::warn(warning);
  }
}

void Trainer::count_skipped(int64_t step, const StepReport& step_report) {
  if (step_report.not_finite.empty()) {
    ++position_.updates;
    position_.skipped_in_a_row = 0;
    return;
  }
  if (progress_) progress_->end_line();
  if (job_.is_first()) spdlog::warn("step {} was skipped on all ranks: not finite: {}", step, step_report.not_finite);
  if (++position_.skipped_in_a_row < job_.job().optimizer.max_skipped_steps) return;
  saves_.wait();
  throw std::runtime_error(
      fmt::format("{} steps in a row were not finite (optimizer.max_skipped_steps), the last one step {}: {}",
                  position_.skipped_in_a_row, step, step_report.not_finite));
}

void Trainer::validate(int64_t step) {
  if (progress_) progress_->end_line();
  last_validation_ = conclave::validate(job_, forward_backward_, validation_, step);
  if (samples_) last_samples_ = samples_->write(step);
}

void Trainer::save(RunSaves::Kind kind) {
  position_.values = checkpoint_values(forward_backward_.selection());
  position_.values.merge(checkpoint_values(dead_experts_));
  const auto start = std::chrono::steady_clock::now();
  clock_.count_save_begin(seconds_since_process_start());
  saves_.save(kind, position_);
  save_seconds_ += seconds_since(start);
}

Trainer::Agreed Trainer::own_view() {
  const double now = seconds_since_process_start();
  const bool save_was_asked_for = signals_.take_save_request();
  return {signals_.to_end(), job_.is_first() && clock_.deadline_is_near(now, saves_.is_under_way()),
          save_was_asked_for || (job_.is_first() && clock_.save_is_due(now)), saves_.is_busy()};
}

RankExtremes Trainer::extremes_of(const StepReport& step_report) {
  const auto seconds_in = [&](Phase phase) { return total_seconds(step_report.times, phase); };
  const Agreed own = own_view();
  return highest_over_ranks(job_, {.peak_memory_bytes = static_cast<double>(device_of(job_.device()).peak_memory()),
                                   .peak_resident_bytes = static_cast<double>(running_memory().peak_resident_bytes),
                                   .gather_seconds = seconds_in(Phase::gather),
                                   .reduce_seconds = seconds_in(Phase::reduce),
                                   .dispatch_seconds = seconds_in(Phase::dispatch),
                                   .data_seconds = seconds_in(Phase::data),
                                   .offload_seconds = seconds_in(Phase::offload),
                                   .stop_signal = static_cast<double>(own.stop_signal),
                                   .saving_is_busy = static_cast<double>(own.saving_is_busy),
                                   .save_stall_seconds = saves_.take_stall_seconds(),
                                   .deadline_is_near = static_cast<double>(own.deadline_is_near),
                                   .save_is_due = static_cast<double>(own.save_is_due)});
}

Trainer::Agreed Trainer::report(int64_t step, const StepReport& step_report, double lr, double seconds) {
  const MemoryReport memory = memory_report();
  const std::optional<FinishedSave> saved = saves_.take_finished();
  const RankExtremes highest = extremes_of(step_report);
  routing_->record(step, step_report);
  if (job_.is_first()) {
    const double tokens_per_second = static_cast<double>(job_.tokens_per_step()) / seconds;
    const StepCourse course{lr, position_.tokens, tokens_per_second, seconds};
    const MetricsRecord record = write_record(step, step_report, highest, course, memory, saved);
    show_progress(step, step_report, highest, course, memory, record);
  }
  return {static_cast<int>(highest.stop_signal), highest.deadline_is_near != 0, highest.save_is_due != 0,
          highest.saving_is_busy != 0};
}

MetricsRecord Trainer::write_record(int64_t step, const StepReport& step_report, const RankExtremes& highest,
                                    const StepCourse& course, const MemoryReport& memory,
                                    const std::optional<FinishedSave>& saved) {
  MetricsRecord record = record_of_step(step_report, highest, course);
  const bool in_detail = step == 1 || step == job_.job().run.steps || step % job_.job().metrics.log_every == 0;
  if (!step_report.load.is_empty())
    append_load(record, job_.model_config(), step_report.load, dead_experts_,
                in_detail ? LoadDetail::by_layer : LoadDetail::brief);
  const auto mfu = model_flops_utilization(flops_per_token_, course.tokens_per_second, peak_flops_per_second_);
  record.emplace_back("mfu", mfu ? MetricValue(*mfu) : MetricValue());
  record.emplace_back("skipped", static_cast<int64_t>(!step_report.not_finite.empty()));
  for (int category = 0; category < memory_categories; ++category)
    record.emplace_back(fmt::format("memory/{}", name_of(static_cast<MemoryCategory>(category))),
                        memory.at_peak.of[category]);
  record.emplace_back("save_stall_seconds",
                      highest.save_stall_seconds);  // waiting for checkpoints since the record before
  if (saved) {                                      // a checkpoint was finished since then
    record.emplace_back("saved_step", saved->step);
    record.emplace_back("save_seconds", saved->seconds);
    record.emplace_back("save_bytes", saved->bytes);
  }
  if (saves_.failed() > 0) record.emplace_back("failed_saves", saves_.failed());
  const auto& validation = job_.job().data.validation;
  append_validation(record, validation_, last_validation_, validation && validation->is_named());
  append_samples(record, last_samples_);
  append_sources(record, *training_, position_.samples, step_report);
  if (step == first_step_) append_start(record, job_, first_step_ - 1);
  metrics_->write(step, record);
  if (tensorboard_) tensorboard_->write(step, record);
  return record;
}

void Trainer::show_progress(int64_t step, const StepReport& step_report, const RankExtremes& highest,
                            const StepCourse& course, const MemoryReport& memory, const MetricsRecord& record) {
  Progress progress;
  for (int category = 0; category < memory_categories; ++category)
    progress.memory_of.emplace_back(name_of(static_cast<MemoryCategory>(category)), memory.at_peak.of[category]);
  progress.step = step;
  progress.sources = losses_of(*training_, step_report);
  progress.loss = step_report.loss;
  progress.grad_norm = step_report.gradient_norm;
  progress.lr = course.lr;
  progress.tokens_per_second = course.tokens_per_second;
  progress.step_seconds = course.seconds;
  if (const double* loss = find_metric<double>(record, "validation_loss")) progress.validation_loss = *loss;
  progress.expert_imbalance = step_report.load.is_empty() ? 1 : step_report.load.imbalance();
  if (const auto* by_layer = find_metric<LayerNumbers>(record, "expert_imbalance_by_layer"))
    progress.imbalance_by_layer = *by_layer;
  progress.peak_memory_bytes = static_cast<int64_t>(highest.peak_memory_bytes);
  progress_->show(progress);
}

}  // namespace conclave
