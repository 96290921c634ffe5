#include "run/run_saves.h"

#include <chrono>

#include "base/error.h"
#include "base/log.h"
#include "base/seconds_since.h"

namespace conclave {

RunSaves::RunSaves(ParallelJob& job, std::function<void()> before_a_line,
                   std::function<void(const FinishedSave&)> after_a_save)
    : job_(job),
      before_a_line_(std::move(before_a_line)),
      after_a_save_(std::move(after_a_save)),
      writer_(checkpoints_folder(job.job()), job.host_world(),
              Retention{job.job().checkpoint.keep, job.job().checkpoint.keep_every}) {}

void RunSaves::save(Kind kind, const TrainingPosition& position) {
  if (const auto before = writer_.saving()) {
    before_a_line_();
    spdlog::info("step {}: waiting for the checkpoint of step {}, which is still being written", position.step,
                 *before);
    finish(Kind::periodic);
  }
  part(kind, position.step, [&] { writer_.begin(checkpoint_state(job_, position), slices_to_save(job_)); });
  const bool behind = kind == Kind::periodic && job_.job().checkpoint.async;
  if (!behind && writer_.saving()) finish(kind);
}

void RunSaves::go_on() {
  part(Kind::periodic, *writer_.saving(), [&] {
    if (const auto saved = writer_.go_on()) tell(*saved);
  });
}

void RunSaves::take_back_memory() {
  const auto start = std::chrono::steady_clock::now();
  writer_.take_back();
  stall_seconds_ += seconds_since(start);
}

void RunSaves::wait() {
  if (writer_.saving()) finish(Kind::periodic);
}

void RunSaves::finish(Kind kind) {
  part(kind, *writer_.saving(), [&] { tell(writer_.finish()); });
}

void RunSaves::part(Kind kind, int64_t step, const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  const auto count = [&] { stall_seconds_ += seconds_since(start); };
  try {
    work();
    count();
  } catch (const PeerLostError&) {
    throw;
  } catch (const InvariantError&) {
    throw;
  } catch (const std::exception& error) {  // the machine's: a full or failing disk; the same kind on all ranks
    if (kind == Kind::last)
      throw std::runtime_error(fmt::format(
          "step {}, the last of this run, was not saved: {}. Older checkpoints are as they were.", step, error.what()));
    count();
    ++failed_;
    before_a_line_();
    if (job_.is_first())
      spdlog::warn("step {} was not saved: {}. Training goes on; older checkpoints are as they were.", step,
                   error.what());
  }
}

void RunSaves::tell(const FinishedSave& saved) {
  finished_ = saved;
  after_a_save_(saved);
  if (!job_.is_first()) return;
  before_a_line_();
  spdlog::info("step {}: saved {} ({:.2f} GB in {:.1f} s)", saved.step, saved.path.string(),
               static_cast<double>(saved.bytes) / 1e9, saved.seconds);
}

}  // namespace conclave
