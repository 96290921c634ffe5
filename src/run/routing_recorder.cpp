#include "run/routing_recorder.h"

#include "base/error.h"
#include "base/log.h"
#include "moe/routing_record.h"
#include "run/abandoned_history.h"
#include "run/run_folder.h"
#include "step/step_exchange.h"

namespace conclave {
namespace {

namespace fs = std::filesystem;

RoutingShape shape_of(const ModelConfig& model) {
  return {model.mixtures(), model.experts(), model.top_k()};
}

// Whether `file` is still there: of this model, up to the step.
bool cut_after(const fs::path& file, const RoutingShape& shape, int64_t step) {
  try {
    const RoutingRecord record(file);
    if (record.shape() != shape) throw UserError(file.string() + " is of another model.");
    const uint64_t size = fs::file_size(file), keep = record.bytes_until(step);
    if (!record.damage().empty()) spdlog::warn(record.damage());
    if (keep < size)
      spdlog::info("{}: {} bytes of records after step {} are dropped; the run writes them anew", file.string(),
                   size - keep, step);
    fs::resize_file(file, keep);
    return true;
  } catch (const UserError& error) {
    spdlog::warn("{}", error.what());
    put_aside(file);
    return false;
  }
}

}  // namespace

RoutingRecorder::RoutingRecorder(ParallelJob& job, int64_t resumed_step) : job_(job) {
  if (!job.is_first()) return;
  const fs::path file = routing_file(job.job());
  const RoutingShape shape = shape_of(job.model_config());
  const bool is_there = fs::exists(file) && fs::file_size(file) > 0 && cut_after(file, shape, resumed_step);
  if (!job.job().metrics.record_routing) return;
  file_ = std::make_unique<AppendFile>(file);
  if (!is_there) head_ = routing_head(shape);
}

void RoutingRecorder::record(int64_t step, const StepReport& report) {
  if (!job_.job().metrics.record_routing) return;
  const RecordedRows rows = gather_rows(job_, report);
  if (file_ && file_->append(head_ + routing_record(shape_of(job_.model_config()), step, rows))) head_.clear();
}

}  // namespace conclave
