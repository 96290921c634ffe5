// A job to begin with: a few keys with their meaning, for a new model and the user's data, tried on paper before
// anything is written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "apps/starter_model.h"
#include "planner/plan.h"

namespace conclave {

struct StarterRequest {
  std::string family;  // a model_type
  std::string size;    // a name of starter_sizes()
  std::filesystem::path data;
  std::optional<int64_t> vocab_size;  // default: what the data need
  int ranks = 1;
  std::string device;            // as of `conclave plan`
  std::filesystem::path output;  // the job file
};

// The sets that a prefix names: itself, or its parts -train and -validation, as `conclave data build` leaves them.
struct StarterData {
  std::filesystem::path train;
  std::optional<std::filesystem::path> validation;
};
// UserError: there is neither.
StarterData find_starter_data(const std::filesystem::path& prefix);

struct StarterJob {
  std::string text;                    // of the job file
  std::filesystem::path model_folder;  // that its model.config names, beside the job file
  ModelConfig model;
  Plan plan;
  double epochs = 0;                  // that the run takes
  std::vector<std::string> adjusted;  // what was changed so that it fits, as "section.key=value"
};

// UserError, before anything is written: data that cannot be used, a vocabulary too small for them, a model that fits
// in no layout of so many ranks.
StarterJob make_starter_job(const StarterRequest& request);

}  // namespace conclave
