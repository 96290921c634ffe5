// What a run may change between a stop and its resumption. One table says which keys of the job do not matter; every
// other does: a run that went on with another value would be a different run.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "config/job.h"

namespace conclave {

// A model's or job's values by key, as a job file has them.
using KeyValues = std::map<std::string, std::string>;

// Every key of the job.
KeyValues values_of(Job job);
// But for the paths of files and folders, which hosts may call otherwise; of several data sets their names and weights.
KeyValues values_but_places_of(Job job);
// The keys of a config.json, as "model.config: hidden_size".
KeyValues values_of_model(const std::string& config_json);

struct Difference {
  std::string key;
  std::string is;
  std::string was;
};

// Where `is` differs from `was` in a key that matters. A key that `was` lacks had its default then: it is newer.
std::vector<Difference> differences_that_matter(const KeyValues& is, const KeyValues& was);

// The keys of checkpoint.allow_changed: those whose difference does not stop the run.
std::vector<std::string> keys_allowed_to_change(const Job& job);
// Why checkpoint.allow_changed cannot be meant, with its remedy; empty: it can.
std::string mistake_in_allowed_keys(const Job& job);

}  // namespace conclave
