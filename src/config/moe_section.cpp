#include "config/moe_section.h"

#include <fmt/format.h>

#include "config/fields.h"
#include "config/key_rules.h"

namespace conclave {

namespace {

void describe_balancing(MoeConfig& moe, Fields& to) {
  to.field("moe.moe_load_balancing", moe.moe_load_balancing,
           OneOf<LoadBalancing>{{{"aux_loss", LoadBalancing::aux_loss},
                                 {"none", LoadBalancing::none},
                                 {"sinkhorn", LoadBalancing::sinkhorn},
                                 {"balanced", LoadBalancing::balanced},
                                 {"bias", LoadBalancing::bias}}},
           "how tokens are spread over the experts: aux_loss by a loss; sinkhorn, bias by the choice itself; "
           "balanced: round-robin, for benchmarks; none: not at all");
  to.field("moe.moe_aux_loss_coeff", moe.moe_aux_loss_coeff, at_least(0),
           "strength of aux_loss; null: the model's own router_aux_loss_coef");
  to.field(
      "moe.aux_loss_scope", moe.aux_loss_scope,
      OneOf<AuxLossScope>{{{"all_ranks", AuxLossScope::all_ranks}, {"rank", AuxLossScope::each_rank}}},
      "whose tokens of a micro-step aux_loss is taken over; rank: each rank's own, averaged: depends on the layout");
  to.field("moe.aux_loss_layers", moe.aux_loss_layers,
           OneOf<AuxLossLayers>{{{"together", AuxLossLayers::together}, {"each", AuxLossLayers::each}}},
           "together: one product over all layers' tokens, as in Transformers; each: every layer's own, averaged: "
           "evens out each layer; null: together after model.init_from, else each");
  to.field("moe.moe_z_loss_coeff", moe.moe_z_loss_coeff, at_least(0),
           "strength of the loss that keeps router logits small; 0: none");
  to.field("moe.sinkhorn_tolerance", moe.sinkhorn_tolerance, more_than(0),
           "sinkhorn ends when every expert's demand is the mean up to this share of it");
  to.field("moe.sinkhorn_iterations", moe.sinkhorn_iterations, NumberRange{1, 100'000},
           "the most iterations of sinkhorn, each one all-reduce of a few numbers a layer");
  to.field("moe.bias_update_rate", moe.bias_update_rate, more_than(0),
           "by which a step raises or lowers an expert's selection bias under moe_load_balancing: bias");
}

void describe_dispatch(MoeConfig& moe, Fields& to) {
  to.field(
      "moe.dispatcher", moe.dispatcher,
      OneOf<DispatcherKind>{{{"all_to_all", DispatcherKind::all_to_all}, {"all_gather", DispatcherKind::all_gather}}},
      "how tokens reach the ranks of their experts; all_gather: every rank gets all tokens of its expert "
      "group, for small groups");
  to.field("moe.dispatch_chunks", moe.dispatch_chunks, NumberRange{1, 64},
           "the rows of one part of the tokens travel while the experts compute another; null: 2 where an expert "
           "group spans hosts, else 1");
  to.field("moe.global_token_shuffle", moe.global_token_shuffle, Anything{},
           "tokens change ranks at random within an expert group before they are dispatched, and return after");
  to.field("moe.capacity_factor", moe.capacity_factor, more_than(0),
           "the most tokens of an expert in a micro-step of training, over the mean; null: no limit, no token is "
           "dropped");
  to.field("moe.drop_policy", moe.drop_policy,
           OneOf<DropPolicy>{{{"probability", DropPolicy::probability}, {"position", DropPolicy::position}}},
           "which tokens a full expert keeps: those of the highest probability or the first; null: probability");
  to.field("moe.overload", moe.overload,
           OneOf<OverloadPolicy>{
               {{"none", OverloadPolicy::none}, {"chunk", OverloadPolicy::chunk}, {"spill", OverloadPolicy::spill}}},
           "what a rank with too many tokens does; chunk: takes them one part after the other; spill: lends "
           "experts to ranks with fewer; null: spill within a host, else none");
  to.field("moe.max_tokens_per_rank_factor", moe.max_tokens_per_rank_factor, at_least(1),
           "overload: chunk takes at most so many tokens at once, over the mean of the ranks");
  to.field("moe.spill_threshold", moe.spill_threshold, at_least(1),
           "overload: spill lends experts when the rows of the busiest rank, over the mean of the ranks, are above "
           "this");
  to.field("moe.spill_least_rows", moe.spill_least_rows, size_of_at_least(1),
           "overload: spill lends an expert for so many of its tokens or more; null: 128 on CPUs, 2048 on GPUs");
  to.field("moe.router_jitter_noise", moe.router_jitter_noise, from_to_below(0, 1),
           "router inputs are multiplied by 1 +- this in training; null: the model's own");
}

void check_balancing(const MoeConfig& moe, KeyRules& rules) {
  // A key that only one balancing rule uses, given beside another rule.
  const auto refuse_unless_rule = [&](LoadBalancing rule, const char* rule_word, const char* key, bool given,
                                      const std::string& value, const char* neutral) {
    rules.refuse_if(given && moe.moe_load_balancing != rule, {key, "moe.moe_load_balancing"},
                    fmt::format("{} is {}, but moe.moe_load_balancing is {}, which does not use it.", key, value,
                                value_of(moe, "moe.moe_load_balancing")),
                    fmt::format("Set {} to {}, or moe.moe_load_balancing to {}.", key, neutral, rule_word));
  };
  const MoeConfig defaults;
  refuse_unless_rule(LoadBalancing::aux_loss, "aux_loss", "moe.moe_aux_loss_coeff",
                     moe.moe_aux_loss_coeff.value_or(0) > 0, fmt::format("{}", moe.moe_aux_loss_coeff.value_or(0)),
                     "null");
  refuse_unless_rule(LoadBalancing::aux_loss, "aux_loss", "moe.aux_loss_scope",
                     moe.aux_loss_scope != defaults.aux_loss_scope, "rank", "all_ranks");
  refuse_unless_rule(LoadBalancing::aux_loss, "aux_loss", "moe.aux_loss_layers",
                     moe.aux_loss_layers == AuxLossLayers::each, "each", "null");
  refuse_unless_rule(LoadBalancing::sinkhorn, "sinkhorn", "moe.sinkhorn_tolerance",
                     moe.sinkhorn_tolerance != defaults.sinkhorn_tolerance, fmt::format("{}", moe.sinkhorn_tolerance),
                     "its default, 0.01");
  refuse_unless_rule(LoadBalancing::sinkhorn, "sinkhorn", "moe.sinkhorn_iterations",
                     moe.sinkhorn_iterations != defaults.sinkhorn_iterations,
                     fmt::format("{}", moe.sinkhorn_iterations), "its default, 50");
  refuse_unless_rule(LoadBalancing::bias, "bias", "moe.bias_update_rate",
                     moe.bias_update_rate != defaults.bias_update_rate, fmt::format("{}", moe.bias_update_rate),
                     "its default, 0.001");
}

void check_dispatch(const MoeConfig& moe, KeyRules& rules) {
  rules.refuse_if(moe.drop_policy && !moe.capacity_factor, {"moe.drop_policy", "moe.capacity_factor"},
                  fmt::format("moe.drop_policy is {}, but moe.capacity_factor is null: no token is dropped.",
                              value_of(moe, "moe.drop_policy")),
                  "Set moe.drop_policy to null, or give moe.capacity_factor, for example 1.25.");
  const MoeConfig defaults;
  // A key that only one answer to overload uses, given beside another. Null can become spill.
  const bool may_spill = moe.dispatcher == DispatcherKind::all_to_all && moe.dispatch_chunks.value_or(1) == 1;
  const OverloadPolicy overload = moe.overload.value_or(may_spill ? OverloadPolicy::spill : OverloadPolicy::none);
  const auto refuse_unless_overload = [&](OverloadPolicy policy, const char* word, const char* key, bool given,
                                          const char* neutral) {
    rules.refuse_if(given && overload != policy, {key, "moe.overload"},
                    fmt::format("{} is {}, but moe.overload is {}, which does not use it.", key, value_of(moe, key),
                                value_of(moe, "moe.overload")),
                    fmt::format("Set {} to its default, {}, or moe.overload to {}.", key, neutral, word));
  };
  refuse_unless_overload(OverloadPolicy::chunk, "chunk", "moe.max_tokens_per_rank_factor",
                         moe.max_tokens_per_rank_factor != defaults.max_tokens_per_rank_factor, "1.5");
  refuse_unless_overload(OverloadPolicy::spill, "spill", "moe.spill_threshold",
                         moe.spill_threshold != defaults.spill_threshold, "1.3");
  refuse_unless_overload(OverloadPolicy::spill, "spill", "moe.spill_least_rows", moe.spill_least_rows.has_value(),
                         "null");
  rules.refuse_if(
      overload != OverloadPolicy::none && moe.dispatcher == DispatcherKind::all_gather,
      {"moe.overload", "moe.dispatcher"},
      fmt::format("moe.overload is {}, but moe.dispatcher is all_gather, with which every rank gets all tokens.",
                  value_of(moe, "moe.overload")),
      "Set moe.dispatcher to all_to_all, or moe.overload to none.");
  rules.refuse_if(
      overload != OverloadPolicy::none && moe.dispatch_chunks.value_or(1) > 1, {"moe.dispatch_chunks", "moe.overload"},
      fmt::format("moe.dispatch_chunks is {}, but moe.overload is {}, which divides a layer's work by itself.",
                  moe.dispatch_chunks.value_or(1), value_of(moe, "moe.overload")),
      "Set moe.dispatch_chunks to 1 or null, or moe.overload to none.");
}

}  // namespace

void describe(MoeConfig& moe, Fields& to) {
  to.section("moe", "routing and its losses");
  describe_balancing(moe, to);
  describe_dispatch(moe, to);
}

void check(const MoeConfig& moe, KeyRules& rules) {
  check_balancing(moe, rules);
  check_dispatch(moe, rules);
}

}  // namespace conclave
