#include "config/checkpoint_section.h"

#include <fmt/format.h>

#include <system_error>

#include "base/shown_path.h"
#include "config/fields.h"
#include "config/key_rules.h"

namespace conclave {

void describe(CheckpointConfig& checkpoint, Fields& to) {
  to.section("checkpoint", "states a job can resume from");
  to.field("checkpoint.every", checkpoint.every, count_from(0), "steps between checkpoints; 0: none by steps");
  to.field("checkpoint.every_minutes", checkpoint.every_minutes, NumberRange{0, 1e6},
           "minutes between checkpoints; 0: none by time; with every: 0 too, nothing is saved");
  to.field("checkpoint.keep", checkpoint.keep, count_from(1), "newest checkpoints kept");
  to.field("checkpoint.keep_every", checkpoint.keep_every, count_from(0),
           "checkpoints of every so many steps are kept for good; 0: none");
  to.field("checkpoint.async", checkpoint.async, Anything{},
           "true: written from a copy in host memory while the next steps run; false: the step waits");
  to.field("checkpoint.resume", checkpoint.resume, WordOrPath{},
           "auto: from the newest checkpoint of output_dir, if any; never; or the path of a checkpoint folder");
  to.field("checkpoint.verify", checkpoint.verify, Anything{}, "on loading, all data is compared with its hashes");
  to.field("checkpoint.on_damage", checkpoint.on_damage,
           OneOf<OnDamage>{{{"fall_back", OnDamage::fall_back}, {"stop", OnDamage::stop}}},
           "when the newest checkpoint is damaged: go on from the newest that is not, or stop");
  to.field("checkpoint.allow_changed", checkpoint.allow_changed, Anything{},
           "keys (section.key, with commas between them) whose change does not stop a resumed run; null: none");
  to.field("checkpoint.export_every", checkpoint.export_every, count_from(0),
           "steps between exports to a Hugging Face folder in output_dir/export; 0: none");
  to.field("checkpoint.export_keep", checkpoint.export_keep, count_from(0), "newest exports kept; 0: all");
}

void check(const CheckpointConfig& checkpoint, KeyRules& rules) {
  // A path may be gone when a run that went on from it is started again (run/resume_choice.h); a word never was one.
  const std::string& resume = checkpoint.resume;
  std::error_code unreadable;
  rules.refuse_if(resume != "auto" && resume != "never" && resume.find('/') == std::string::npos &&
                      !std::filesystem::is_directory(resume, unreadable),
                  {"checkpoint.resume"},
                  fmt::format("checkpoint.resume is {}, but there is no such folder.", shown_path(resume)),
                  "Use auto, never or the path of a checkpoint folder.");
}

}  // namespace conclave
