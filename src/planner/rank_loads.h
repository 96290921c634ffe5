// How many rows each rank computes in a step whose routing is known, after a capacity and after lending.
#pragma once

#include <optional>
#include <vector>

#include "moe/spill_plan.h"
#include "planner/device_description.h"
#include "planner/recorded_routing.h"

namespace conclave {

// Takes away what moe.capacity_factor drops, if there is one. Returns its share of the choices.
double drop_from(StepRows& step, const CheckedJob& job);

// How the job lends experts on such a device.
std::optional<SpillOptions> spill_of(const CheckedJob& job, const DeviceDescription& device);

class RankLoads {
 public:
  // `spill`: null where no expert is lent.
  RankLoads(const StepRows& step, const CheckedJob& job, const std::optional<SpillOptions>& spill);

  // The rank with most rows in a layer of a micro-step; of equal ones that with the largest expert.
  int busiest_in(size_t micro_step, size_t layer) const { return busiest_[micro_step][layer]; }
  // Rows of the busiest rank of an expert group over the group's mean, before lending; the mean of layers and
  // micro-steps.
  double imbalance() const { return imbalance_; }
  // Of the rows, those that another rank than the expert's own computes.
  double lent_share() const { return lent_share_; }
  // Ranks of which one needs most memory, ascending: that with most rows in all layers of a micro-step, that with most
  // in a single one, and with lending that which computes most of other ranks' experts.
  std::vector<int> candidates() const;

 private:
  std::vector<std::vector<int>> busiest_;
  int most_in_all_ = 0, most_in_one_ = 0, most_guests_ = 0;
  double imbalance_ = 1, lent_share_ = 0;
};

}  // namespace conclave
