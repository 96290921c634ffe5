#include "config/run_section.h"

#include "config/fields.h"

namespace conclave {

void describe(RunConfig& run, Fields& to) {
  to.section("run", "what the job is called, how long it runs, where its output goes");
  to.field("run.name", run.name, NotEmpty{}, "the name in messages and in TensorBoard");
  to.field("run.output_dir", run.output_dir, RequiredPath{"every job", true},
           "the folder of the resolved job, metrics, checkpoints and exports");
  to.field("run.steps", run.steps, count_from(1), "optimizer steps of the whole job");
  to.field("run.seed", run.seed, at_least(0), "initial weights and the order of the data follow from it alone");
  to.field("run.device", run.device,
           OneOf<WantedDevice>{
               {{"auto", WantedDevice::automatic}, {"cpu", WantedDevice::cpu}, {"cuda", WantedDevice::cuda}}},
           "auto: CUDA where there is one");
  to.field("run.deterministic", run.deterministic, Only{"true", "every path of it is deterministic"},
           "the same job on the same layout gives the same bits");
  to.field("run.timeout_seconds", run.timeout_seconds, NumberRange{1, 31'536'000},
           "a collective that takes longer means a lost or hung rank");
  to.field("run.stop_after", run.stop_after, Anything{},
           "the run ends in time to have saved when its processes are so old, with exit code 6; null: no deadline");
}

}  // namespace conclave
