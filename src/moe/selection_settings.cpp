#include "moe/selection_settings.h"

namespace conclave {

SelectionSettings selection_settings(const MoeConfig& moe) {
  return {moe.moe_load_balancing, {moe.sinkhorn_tolerance, moe.sinkhorn_iterations}, moe.bias_update_rate};
}

std::unique_ptr<ExpertSelection> make_selection(const SelectionSettings& settings, const RouterOptions& router,
                                                int64_t layers, int64_t experts, Communicator& world,
                                                at::Device device) {
  switch (settings.rule) {
    case LoadBalancing::sinkhorn:
      return std::make_unique<SinkhornSelection>(router, settings.sinkhorn, world);
    case LoadBalancing::balanced:
      return std::make_unique<RoundRobinSelection>(router);
    case LoadBalancing::bias:
      return std::make_unique<BiasedSelection>(router, settings.bias_update_rate, layers, experts, device);
    case LoadBalancing::none:
    case LoadBalancing::aux_loss:
      break;
  }
  return std::make_unique<TopKSelection>(router);
}

}  // namespace conclave
