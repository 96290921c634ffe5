// The section `checkpoint` of the job file. States a job can resume from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace conclave {

class Fields;
class KeyRules;

enum class OnDamage { fall_back, stop };

struct CheckpointConfig {
  int64_t every = 0;            // steps between checkpoints; 0: none by steps
  double every_minutes = 30;    // minutes between checkpoints; 0: none by time
  int64_t keep = 2;             // newest checkpoints kept
  int64_t keep_every = 0;       // checkpoints of every so many steps are kept for good; 0: none
  bool async = true;            // written while the next steps run
  std::string resume = "auto";  // auto: the newest of output_dir, if any; never; or the path of a checkpoint folder
  bool verify = true;           // on loading, hashes are compared
  OnDamage on_damage = OnDamage::fall_back;
  std::optional<std::string> allow_changed;  // keys, with commas between them, whose change does not stop a resumed run
  int64_t export_every = 0;                  // steps between exports to a Hugging Face folder; 0: none
  int64_t export_keep = 0;                   // newest exports kept; 0: all

  // Where one of the two says when to save, the last step is saved too; else nothing is.
  bool saves() const { return every > 0 || every_minutes > 0; }
};

void describe(CheckpointConfig& checkpoint, Fields& to);
void check(const CheckpointConfig& checkpoint, KeyRules& rules);

}  // namespace conclave
