// The section `moe` of the job file. Routing and its losses.
#pragma once

#include <cstdint>
#include <optional>

namespace conclave {

class Fields;
class KeyRules;

enum class LoadBalancing { none, aux_loss, sinkhorn, balanced, bias };
enum class AuxLossScope { all_ranks, each_rank };
enum class AuxLossLayers { together, each };
enum class DispatcherKind { all_to_all, all_gather };
// What a full expert keeps: the choices of the highest score, of equal ones the earlier token; or the first in the
// order of the data's stream.
enum class DropPolicy { probability, position };
enum class OverloadPolicy { none, chunk, spill };

struct MoeConfig {
  LoadBalancing moe_load_balancing = LoadBalancing::aux_loss;
  std::optional<double> moe_aux_loss_coeff = {};          // default: the model's own router_aux_loss_coef
  AuxLossScope aux_loss_scope = AuxLossScope::all_ranks;  // whose tokens of a micro-step aux_loss is taken over
  std::optional<AuxLossLayers> aux_loss_layers = {};      // over which layers' rows at once; default: checked_job.h
  double moe_z_loss_coeff = 0.0;
  double sinkhorn_tolerance = 0.01;  // of an expert's demand, relative to the mean
  int64_t sinkhorn_iterations = 50;  // at most
  double bias_update_rate = 0.001;   // by which a step changes an expert's selection bias
  DispatcherKind dispatcher = DispatcherKind::all_to_all;
  std::optional<int64_t> dispatch_chunks = {};     // default: 2 where an expert group spans hosts, else 1
  bool global_token_shuffle = false;               // tokens change ranks at random before they are dispatched
  std::optional<double> capacity_factor = {};      // default: no token is dropped
  std::optional<DropPolicy> drop_policy = {};      // default: probability, where there is a capacity
  std::optional<OverloadPolicy> overload = {};     // default: checked_job.h
  double max_tokens_per_rank_factor = 1.5;         // of chunk: the most rows at once on a rank, over the mean
  double spill_threshold = 1.3;                    // of spill: rows of the busiest rank over the mean; above: lends
  std::optional<int64_t> spill_least_rows = {};    // of spill: the fewest rows an expert's weights travel for; default:
                                                   // 128 on CPUs, 2048 on GPUs
  std::optional<double> router_jitter_noise = {};  // default: the model's own
};

void describe(MoeConfig& moe, Fields& to);
void check(const MoeConfig& moe, KeyRules& rules);

}  // namespace conclave
