// conclave ckpt go-back: an older checkpoint of a run becomes the one that it goes on from.
#include <fmt/core.h>

#include <memory>

#include "apps/ckpt.h"
#include "base/error.h"
#include "base/shown_path.h"
#include "checkpoint/checkpoint_folder.h"
#include "run/abandoned_history.h"
#include "run/run_folder.h"
#include "run/run_lock.h"

namespace conclave {
namespace {

// The job whose run.output_dir holds the checkpoint: all that what lies there is known by.
Job job_of(const std::filesystem::path& checkpoint) {
  Job job;
  job.run.output_dir = std::filesystem::canonical(checkpoint).parent_path().parent_path();
  if (!is_own_checkpoint(job, checkpoint))
    user_error(
        "{} is not in the checkpoints folder of a run.\n       Give one that is called like "
        "RUN/checkpoints/step-00000100. To begin from a checkpoint that lies elsewhere, set checkpoint.resume to it.",
        shown_path(checkpoint));
  return job;
}

}  // namespace

void add_ckpt_go_back(CLI::App& ckpt) {
  auto path = std::make_shared<std::filesystem::path>();
  CLI::App* command =
      ckpt.add_subcommand("go-back", "put aside what a run has after a checkpoint, so that it goes on from there");
  command->add_option("checkpoint", *path, "the checkpoint's folder, in the checkpoints folder of its run")->required();
  command->footer(
      "Later checkpoints, exports and a copy of the metrics move to checkpoints/abandoned-N/ of the run; nothing is "
      "removed. The next `conclave train` goes on from this checkpoint. A job with checkpoint.resume: PATH goes back "
      "to PATH once by itself, and once more after this command.");
  command->callback([path] {
    const CheckpointReader checkpoint(checkpoint_of(*path));
    const Job job = job_of(checkpoint.path());
    const RunLock lock(job.run.output_dir);
    abandon_history_after(job, checkpoint.path(), checkpoint.state().step);
    fmt::print("the run in {} goes on after step {}\n", job.run.output_dir.string(), checkpoint.state().step);
  });
}

}  // namespace conclave
