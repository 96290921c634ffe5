// By which rule the tokens of a run choose their experts.
#pragma once

#include <memory>

#include "config/moe_section.h"
#include "moe/sinkhorn_selection.h"

namespace conclave {

struct SelectionSettings {
  LoadBalancing rule = LoadBalancing::aux_loss;
  SinkhornOptions sinkhorn = {};    // of sinkhorn
  double bias_update_rate = 0.001;  // of bias
};
SelectionSettings selection_settings(const MoeConfig& moe);

// `layers`: with experts, of the model; `experts`: of each. `world` outlives the selection.
std::unique_ptr<ExpertSelection> make_selection(const SelectionSettings& settings, const RouterOptions& router,
                                                int64_t layers, int64_t experts, Communicator& world,
                                                at::Device device);

}  // namespace conclave
