#include "config/adapter_section.h"

#include <fmt/format.h>

#include "config/fields.h"
#include "config/key_rules.h"

namespace conclave {

void describe(AdapterConfig& adapter, Fields& to) {
  to.section("adapter", "LoRA: low-rank matrices beside the model's own, which alone are trained");
  to.field("adapter.rank", adapter.rank, NumberRange{0, 1 << 16}, "columns of the matrices; 0: there is no adapter");
  to.field("adapter.alpha", adapter.alpha, more_than(0),
           "what the matrices add is multiplied by alpha / rank; null: twice the rank");
  to.field("adapter.use_rslora", adapter.use_rslora, Anything{},
           "true: multiplied by alpha / the root of rank (Kalajdzievski, arXiv 2312.03732)");
  to.field("adapter.use_dora", adapter.use_dora,
           Only{"false", "DoRA's magnitudes need the norm of each column of W + B A, and that matrix is never made"},
           "DoRA: not in this version");
  to.field("adapter.dropout", adapter.dropout, from_to_below(0, 1),
           "probability with which an element that the matrices of dense layers read is dropped in training");
  to.field("adapter.targets", adapter.targets, Anything{},
           "dense layers that have adapters: attention, mlp, or modules such as q_proj; [] for none");
  to.field("adapter.experts", adapter.experts, Anything{},
           "whether the routed experts have adapters; null: true, if the model has experts");
  to.field("adapter.router", adapter.router,
           OneOf<AdapterRouter>{{{"frozen", AdapterRouter::frozen},
                                 {"trained", AdapterRouter::trained},
                                 {"adapted", AdapterRouter::adapted}}},
           "the router stays as it is, is trained whole, or has an adapter");
  to.field("adapter.init_from", adapter.init_from, Anything{},
           "an adapter folder as PEFT and conclave ckpt export write it, to start from; null: A is drawn, B is zero");
}

void check(const AdapterConfig& adapter, KeyRules& rules) {
  const AdapterConfig defaults;
  const auto refuse_without_rank = [&](bool given, const char* key) {
    rules.refuse_if(given && !adapter.exists(), {key, "adapter.rank"},
                    fmt::format("{} is {}, but adapter.rank is 0: there is no adapter that it could be of.", key,
                                value_of(adapter, key)),
                    fmt::format("Give adapter.rank, for example 16, or leave {} out.", key));
  };
  refuse_without_rank(adapter.alpha.has_value(), "adapter.alpha");
  refuse_without_rank(adapter.use_rslora, "adapter.use_rslora");
  refuse_without_rank(adapter.dropout > 0, "adapter.dropout");
  refuse_without_rank(adapter.targets != defaults.targets, "adapter.targets");
  refuse_without_rank(adapter.experts.has_value(), "adapter.experts");
  refuse_without_rank(adapter.router != defaults.router, "adapter.router");
  refuse_without_rank(adapter.init_from.has_value(), "adapter.init_from");
}

}  // namespace conclave
