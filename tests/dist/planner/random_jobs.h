// Jobs drawn at random, for holding the plan against the engine.
#pragma once

#include <random>
#include <string>

#include "dist/planner/engine.h"
#include "mixtral_shape.h"

namespace conclave::testing {

class Draw {
 public:
  explicit Draw(unsigned seed) : engine_(seed) {}
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[engine_() % values.size()];
  }
  bool chance(int of) { return engine_() % of == 0; }
  int below(int end) { return static_cast<int>(engine_() % end); }

 private:
  std::mt19937 engine_;
};

// What FakeCommunicator's world can play (sinkhorn's iterations and shuffled rows follow from other ranks' values).
inline Case draw_case(Draw& draw) {
  using enum ActivationCheckpointing;
  Case c{.name = "drawn", .world = draw.one_of({1, 2, 4, 8})};
  c.rank = draw.below(c.world);
  do {
    c.shard = draw.one_of<int64_t>({1, 2, 4, 8});
    c.expert = draw.one_of<int64_t>({1, 2, 4, 8});
  } while (c.world % c.shard != 0 || c.shard % c.expert != 0);
  c.checkpointing = draw.one_of({none, selective, full});
  c.offloading = c.checkpointing != none && draw.chance(3);
  c.prefetch_units = draw.below(4);
  c.reshard_after_forward = draw.one_of<const char*>({"true", "true", "false", "all but layers.1"});
  c.tied = draw.chance(4);
  c.micro_steps = draw.one_of<int64_t>({1, 1, 2, 4});
  c.sequences = draw.one_of<int64_t>({1, 2, 3});
  c.moe.moe_load_balancing =
      draw.one_of({LoadBalancing::aux_loss, LoadBalancing::none, LoadBalancing::balanced, LoadBalancing::bias});
  if (draw.chance(5)) c.moe.capacity_factor = 100;
  if (draw.chance(4)) c.moe.dispatcher = DispatcherKind::all_gather;
  if (draw.chance(3)) c.moe.dispatch_chunks = draw.one_of<int64_t>({2, 3});
  if (c.moe.dispatcher == DispatcherKind::all_to_all && !c.moe.dispatch_chunks && draw.chance(3)) {
    c.moe.overload = OverloadPolicy::spill;
    c.moe.spill_threshold = 1.01;
    c.moe.spill_least_rows = 1;
  }
  return c;
}

inline ModelConfig draw_model(Draw& draw) {
  MixtralShape model;
  model.vocab_size = draw.one_of({501, 2000});
  model.hidden_size = draw.one_of({64, 192});
  model.intermediate_size = draw.one_of({96, 384});
  model.num_hidden_layers = draw.one_of({2, 3, 4});
  model.num_attention_heads = 4;
  model.num_key_value_heads = draw.one_of({1, 2, 4});
  model.head_dim = draw.one_of({16, 48});
  model.num_local_experts = draw.one_of({8, 16});
  model.num_experts_per_tok = draw.one_of({1, 2, 3});
  model.initializer_range = 0.2;  // so that routing is not even
  return model;
}

inline std::string text_of(const Case& c) {
  return fmt::format(
      "world {}, rank {}, shard {}, expert {}, checkpointing {}, offloading {}, prefetch {}, reshard {}, tied {}, {} "
      "micro-steps of {}, balancing {}, capacity {}, dispatcher {}, chunks {}, overload {}",
      c.world, c.rank, c.shard, c.expert, static_cast<int>(c.checkpointing), c.offloading, c.prefetch_units,
      c.reshard_after_forward, c.tied, c.micro_steps, c.sequences, static_cast<int>(c.moe.moe_load_balancing),
      c.moe.capacity_factor.value_or(0), static_cast<int>(c.moe.dispatcher), c.moe.dispatch_chunks.value_or(1),
      c.moe.overload == OverloadPolicy::spill ? "spill" : "none");
}

}  // namespace conclave::testing
