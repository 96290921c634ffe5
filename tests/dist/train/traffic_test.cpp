// Collectives and bytes of a training micro-step, counted, against a formula worked out here from the model's numbers:
// exact, no tolerance. One rank of a world of 4 or 64 counts by itself (FakeCommunicator); two ranks over Gloo count in
// earnest.
#include <ATen/ATen.h>

#include <set>

#include "comm/counting_communicator.h"
#include "comm/fake_communicator.h"
#include "dist/world.h"
#include "optim/optimizer.h"
#include "train/forward_backward.h"

namespace conclave {
namespace {

using testing::run_ranks;

struct Case {
  std::string name;
  int world, rank;
  int64_t shard, expert;
  ActivationCheckpointing checkpointing = ActivationCheckpointing::none;
  int64_t prefetch_units = 1;
  std::string reshard_after_forward = "true";
  std::set<std::string> stay = {};  // the units that stay gathered by that
  bool tied = false;
  at::ScalarType compute = at::kFloat, reduce = at::kFloat;
  int64_t micro_steps = 1;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

constexpr int64_t sequences = 2, sequence = 12;

// Odd on purpose: no size is a multiple of what it is padded to. The embedding (96 KB of fp32) is all-reduced in parts,
// the rest in one go.
ModelConfig small_model(const Case& c) {
  ModelConfig model;
  model.vocab_size = 1003;
  model.hidden_size = 24;
  model.intermediate_size = 20;
  model.num_hidden_layers = 3;
  model.num_attention_heads = 3;
  model.num_key_value_heads = 1;
  model.head_dim = 8;
  model.num_local_experts = 8;
  model.num_experts_per_tok = 2;
  model.tie_word_embeddings = c.tied;
  model.initializer_range = 0.5;  // large, so that routing is not nearly even
  return model;
}

Job job_of(const Case& c) {
  Job job;
  job.parallel.hybrid_shard_degree = c.shard;
  job.parallel.expert_parallel_degree = c.expert;
  job.parallel.prefetch_units = c.prefetch_units;
  job.parallel.reshard_after_forward =
      ReshardRule::parse(c.reshard_after_forward).value_or(ReshardRule(c.reshard_after_forward == "true"));
  job.memory.activation_checkpointing = c.checkpointing;
  job.memory.loss_chunk_tokens = 10;
  return job;
}

MicroBatch batch_of(int rank, const ModelConfig& model) {
  at::Generator generator = at::detail::createCPUGenerator(77 + static_cast<uint64_t>(rank));
  const auto tokens = [&] { return at::randint(model.vocab_size, {sequences * sequence}, generator, at::kLong); };
  return {tokens(), tokens(), sequences, sequence, {2 * rank, 2 * rank + 1}};
}

using ByOperation = TrafficCount::ByOperation;

// The formula.
class Expected {
 public:
  Expected(const Case& c, const ModelConfig& model) : c_(c), model_(model) {
    shard_ = c.shard;
    replica_ = c.world / c.shard;
    expert_shard_ = std::max<int64_t>(c.shard / c.expert, 1);
    expert_replica_ = c.world / (c.expert * expert_shard_);
  }

  // rows_out, rows_in: routed rows this rank sends to and receives from other ranks, by layer.
  ByOperation micro_step(bool last, const std::vector<int64_t>& rows_out, const std::vector<int64_t>& rows_in) {
    const int64_t layers = model_.num_hidden_layers;
    unit(embedding_dense(), 0, embedding_gathers(), last);
    for (int64_t layer = 1; layer <= layers; ++layer) unit(layer_dense(), layer_expert(), layer_gathers(layer), last);
    unit(head_dense(), 0, 1, last);
    for (int64_t layer = 0; layer < layers; ++layer) dispatch(rows_out[layer], rows_in[layer]);
    // Choices of each expert by layer, probability of each expert, logsumexp^2, tokens; doubles, in one go.
    const int64_t statistics = layers * model_.num_local_experts + model_.num_local_experts + 2;
    all_reduce("world", c_.world, c_.rank, statistics, 8);
    return std::move(counts_);
  }

  ByOperation evaluation(const std::vector<int64_t>& rows_out, const std::vector<int64_t>& rows_in) {
    const bool embedding_is_kept = model_.num_hidden_layers + 2 <= ahead("embedding");
    gather(embedding_dense(), 0, model_.tie_word_embeddings && !embedding_is_kept ? 2 : 1);
    for (int64_t layer = 0; layer < model_.num_hidden_layers; ++layer) {
      gather(layer_dense(), layer_expert(), 1);
      all_to_all(model_.num_local_experts / c_.expert * (c_.expert - 1) * 8);
      all_to_all(rows_out[layer] * message());
      all_to_all(rows_in[layer] * row());
    }
    gather(head_dense(), 0, 1);
    all_reduce("world", c_.world, c_.rank, model_.num_local_experts * (model_.num_hidden_layers + 1) + 2, 8);
    return std::move(counts_);
  }

 private:
  static int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

  // Elements of a unit's flat buffer before the padding to whole shards: each parameter ends at a multiple of 16.
  static int64_t aligned(const std::vector<int64_t>& numels) {
    int64_t sum = 0;
    for (int64_t numel : numels) sum += round_up(numel, 16);
    return sum;
  }
  int64_t embedding_dense() const { return aligned({model_.vocab_size * model_.hidden_size}); }
  int64_t head_dense() const {
    return model_.tie_word_embeddings ? aligned({model_.hidden_size})
                                      : aligned({model_.hidden_size, model_.vocab_size * model_.hidden_size});
  }
  int64_t layer_dense() const {
    const int64_t query = model_.num_attention_heads * model_.head_dim,
                  key = model_.num_key_value_heads * model_.head_dim;
    const int64_t h = model_.hidden_size;
    return aligned({h, (query + 2 * key) * h, h * query, h, model_.num_local_experts * h});
  }
  int64_t layer_expert() const {
    const int64_t local = model_.num_local_experts / c_.expert, matrix = model_.intermediate_size * model_.hidden_size;
    return aligned({local * 2 * matrix, local * matrix});
  }

  // A unit that is visited again within this many visits stays gathered.
  int64_t ahead(const std::string& unit) const {
    return c_.reshard_after_forward == "false" || c_.stay.contains(unit) ? 1000 : c_.prefetch_units + 1;
  }
  // Between a layer's forward and its backward lie the layers above it twice, and the head (with the embedding's table
  // when tied).
  int64_t layer_gathers(int64_t layer) const {
    const int64_t visits = 2 * (model_.num_hidden_layers - layer) + 2 + (model_.tie_word_embeddings ? 1 : 0);
    return visits <= ahead(fmt::format("layers.{}", layer - 1)) ? 1 : 2;
  }
  // Its backward needs no weights; the tied table is visited again by the head.
  int64_t embedding_gathers() const {
    return model_.tie_word_embeddings && model_.num_hidden_layers + 2 > ahead("embedding") ? 2 : 1;
  }

  void add(const char* axis, const char* operation, int64_t bytes, int64_t calls = 1) {
    Traffic& traffic = counts_[{axis, operation}];
    traffic.calls += calls;
    traffic.bytes += calls * bytes;
  }

  void gather(int64_t dense, int64_t expert, int64_t times) {
    const int64_t item = c10::elementSize(c_.compute);
    if (shard_ > 1) add("shard", "all_gather", (shard_ - 1) * round_up(dense, 16 * shard_) / shard_ * item, times);
    if (expert > 0 && expert_shard_ > 1)
      add("expert_shard", "all_gather",
          (expert_shard_ - 1) * round_up(expert, 16 * expert_shard_) / expert_shard_ * item, times);
  }

  void unit(int64_t dense, int64_t expert, int64_t gathers, bool last) {
    gather(dense, expert, gathers);
    reduce("shard", "replica", dense, shard_, replica_, c_.rank / shard_, last);
    if (expert > 0)
      reduce("expert_shard", "expert_replica", expert, expert_shard_, expert_replica_,
             c_.rank / (c_.expert * expert_shard_), last);
  }

  void reduce(const char* shard_axis, const char* replica_axis, int64_t elements, int64_t shard, int64_t replica,
              int64_t replica_index, bool last) {
    const int64_t shard_elements = round_up(elements, 16 * shard) / shard;
    if (shard > 1) add(shard_axis, "reduce_scatter", (shard - 1) * shard_elements * c10::elementSize(c_.reduce));
    if (last && replica > 1) all_reduce(replica_axis, replica, replica_index, shard_elements, 4);
  }

  // For two ranks or up to 64 KiB each rank sends all to all others; else each sums a part and gives it to the others.
  void all_reduce(const char* axis, int64_t size, int64_t rank, int64_t elements, int64_t item) {
    if (size <= 2 || elements * item <= 64 * 1024) return add(axis, "all_reduce", (size - 1) * elements * item);
    const int64_t own = elements * (rank + 1) / size - elements * rank / size;
    add(axis, "all_reduce", (elements - own + (size - 1) * own) * item);
  }

  int64_t row() const { return model_.hidden_size * c10::elementSize(c_.compute); }
  int64_t message() const { return round_up(row() + 4, 16); }  // a row, and its weight in fp32

  void all_to_all(int64_t bytes) {
    if (c_.expert > 1) add("expert", "all_to_all", bytes);
  }

  void dispatch(int64_t rows_out, int64_t rows_in) {
    const int64_t counts = model_.num_local_experts / c_.expert * (c_.expert - 1) * 8;  // int64, the own ones stay
    all_to_all(counts);
    all_to_all(rows_out * message());  // tokens to experts
    all_to_all(rows_in * row());       // outputs back
    if (c_.checkpointing == ActivationCheckpointing::full) {
      all_to_all(counts);
      all_to_all(rows_out * message());
    }
    all_to_all(rows_out * row());     // gradients of outputs to experts
    all_to_all(rows_in * message());  // gradients of tokens and weights back
  }

  Case c_;
  ModelConfig model_;
  int64_t shard_, replica_, expert_shard_, expert_replica_;
  ByOperation counts_;
};

void expect_equal(const ByOperation& actual, const ByOperation& expected) {
  for (const auto& [key, traffic] : expected) {
    const auto found = actual.find(key);
    const Traffic counted = found == actual.end() ? Traffic{} : found->second;
    EXPECT_EQ(counted.calls, traffic.calls) << "calls of " << key.second << " over " << key.first;
    EXPECT_EQ(counted.bytes, traffic.bytes) << "bytes of " << key.second << " over " << key.first;
  }
  for (const auto& [key, traffic] : actual)
    EXPECT_TRUE(expected.count(key)) << key.second << " over " << key.first << ": " << traffic.calls
                                     << " calls, not expected";
}

// Rows for experts of other ranks, by layer, from the router's own counts (which travel with the balancing statistics,
// not by the dispatcher).
std::vector<int64_t> remote_rows(const at::Tensor& count_LE, int64_t expert_degree, int64_t expert_rank) {
  std::vector<int64_t> rows;
  const int64_t local = count_LE.size(1) / expert_degree;
  for (int64_t layer = 0; layer < count_LE.size(0); ++layer) {
    const at::Tensor count_E = count_LE[layer];
    rows.push_back(
        static_cast<int64_t>((count_E.sum() - count_E.narrow(0, expert_rank * local, local).sum()).item<double>()));
  }
  return rows;
}

struct CountedModel {
  CountedModel(const Case& c, const Axes& axes)
      : config(small_model(c)), model(config, axes, {c.compute, c.reduce, at::kCPU}), job(job_of(c)) {
    model.allocate_parameters();
    model.allocate_training_state();
    model.initialize(3);
    forward_backward.emplace(model, job, ForwardBackward::Coefficients{0.01, 0.001});
  }
  ModelConfig config;
  ParallelModel model;
  Job job;
  std::optional<ForwardBackward> forward_backward;
};

class FakeWorld : public ::testing::TestWithParam<Case> {};

std::vector<Case> cases() {
  using enum ActivationCheckpointing;
  return {
      {.name = "shard4", .world = 4, .rank = 0, .shard = 4, .expert = 1},
      {.name = "shard4_last_rank", .world = 4, .rank = 3, .shard = 4, .expert = 1, .micro_steps = 2},
      {.name = "shard4_expert2", .world = 4, .rank = 1, .shard = 4, .expert = 2, .micro_steps = 3},
      {.name = "shard2_expert2", .world = 4, .rank = 2, .shard = 2, .expert = 2, .micro_steps = 2},
      {.name = "shard1_expert4", .world = 4, .rank = 3, .shard = 1, .expert = 4, .micro_steps = 2},
      {.name = "shard1_expert1", .world = 4, .rank = 2, .shard = 1, .expert = 1, .micro_steps = 2},
      {.name = "selective", .world = 4, .rank = 0, .shard = 4, .expert = 2, .checkpointing = selective},
      {.name = "full", .world = 4, .rank = 0, .shard = 4, .expert = 2, .checkpointing = full},
      {.name = "prefetch0", .world = 4, .rank = 0, .shard = 4, .expert = 2, .prefetch_units = 0},
      {.name = "prefetch2", .world = 4, .rank = 0, .shard = 4, .expert = 2, .prefetch_units = 2},
      {.name = "prefetch4", .world = 4, .rank = 0, .shard = 4, .expert = 2, .prefetch_units = 4},
      {.name = "prefetch100", .world = 4, .rank = 0, .shard = 4, .expert = 2, .prefetch_units = 100, .micro_steps = 2},
      {.name = "kept_from_forward",
       .world = 4,
       .rank = 0,
       .shard = 4,
       .expert = 2,
       .reshard_after_forward = "false",
       .micro_steps = 2},
      {.name = "two_layers_kept",
       .world = 4,
       .rank = 2,
       .shard = 4,
       .expert = 2,
       .reshard_after_forward = "all but layers.0, layers.2",
       .stay = {"layers.0", "layers.2"},
       .micro_steps = 2},
      {.name = "tied_embedding_kept",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 1,
       .reshard_after_forward = "all but embedding, layers.1-2",
       .stay = {"embedding", "layers.1", "layers.2"},
       .tied = true},
      {.name = "tied", .world = 4, .rank = 1, .shard = 4, .expert = 2, .tied = true, .micro_steps = 2},
      {.name = "tied_prefetch3", .world = 4, .rank = 1, .shard = 2, .expert = 4, .prefetch_units = 3, .tied = true},
      {.name = "tied_kept",
       .world = 4,
       .rank = 1,
       .shard = 4,
       .expert = 1,
       .reshard_after_forward = "false",
       .tied = true},
      {.name = "bf16",
       .world = 4,
       .rank = 1,
       .shard = 2,
       .expert = 2,
       .compute = at::kBFloat16,
       .reduce = at::kBFloat16,
       .micro_steps = 2},
      {.name = "world64", .world = 64, .rank = 5, .shard = 64, .expert = 8, .micro_steps = 2},
      {.name = "world64_hybrid", .world = 64, .rank = 63, .shard = 16, .expert = 8, .micro_steps = 2},
      {.name = "world64_hybrid_full", .world = 64, .rank = 17, .shard = 8, .expert = 4, .checkpointing = full},
      {.name = "world64_expert_wider_than_shard", .world = 64, .rank = 40, .shard = 4, .expert = 8, .micro_steps = 2},
      {.name = "world64_replicated", .world = 64, .rank = 33, .shard = 1, .expert = 1},
  };
}
INSTANTIATE_TEST_SUITE_P(Traffic, FakeWorld, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

Axes fake_axes(const Case& c, const Layout& layout, const std::shared_ptr<TrafficCount>& count) {
  return Axes(layout, c.rank, [&](const AxisGroup& group, const std::string& axis) {
    return std::make_unique<CountingCommunicator>(std::make_unique<FakeCommunicator>(axis, group.index, group.size()),
                                                  count);
  });
}

// FakeCommunicator gives each rank the counts it sent, so as many rows come as go.
TEST_P(FakeWorld, step_sends_what_the_formula_says) {
  const Case& c = GetParam();
  const auto count = std::make_shared<TrafficCount>();
  const Layout layout(c.world, job_of(c).parallel, small_model(c).num_local_experts);
  const Axes axes = fake_axes(c, layout, count);
  CountedModel counted(c, axes);
  const MicroBatch batch = batch_of(c.rank, counted.config);
  EXPECT_TRUE(count->reset().empty()) << "setting up sends nothing";
  for (int64_t m = 0; m < c.micro_steps; ++m) {
    SCOPED_TRACE("micro-step " + std::to_string(m));
    const bool last = m == c.micro_steps - 1;
    const MicroStepResult result = counted.forward_backward->train(batch, {m == 0, last, 0.01, 1.0});
    const std::vector<int64_t> rows = remote_rows(result.balance.count_LE, c.expert, c.rank % c.expert);
    expect_equal(count->reset(), Expected(c, counted.config).micro_step(last, rows, rows));
  }
}

TEST_P(FakeWorld, evaluation_sends_what_the_formula_says) {
  const Case& c = GetParam();
  const auto count = std::make_shared<TrafficCount>();
  const Layout layout(c.world, job_of(c).parallel, small_model(c).num_local_experts);
  const Axes axes = fake_axes(c, layout, count);
  CountedModel counted(c, axes);
  const MicroStepResult result = counted.forward_backward->evaluate(batch_of(c.rank, counted.config));
  const std::vector<int64_t> rows = remote_rows(result.balance.count_LE, c.expert, c.rank % c.expert);
  expect_equal(count->reset(), Expected(c, counted.config).evaluation(rows, rows));
}

// The end of a step: one all-reduce over the world, of one double for each unit.
TEST_P(FakeWorld, gradient_norm_sends_one_double_for_each_unit) {
  const Case& c = GetParam();
  const auto count = std::make_shared<TrafficCount>();
  const Layout layout(c.world, job_of(c).parallel, small_model(c).num_local_experts);
  const Axes axes = fake_axes(c, layout, count);
  CountedModel counted(c, axes);
  Optimizer optimizer({}, counted.model.optimizer_units());
  optimizer.gradient_squares(axes.world(), at::kCPU);
  optimizer.update(1e-3, 1, 1.0);
  expect_equal(count->reset(), {{{"world", "all_reduce"}, {1, (c.world - 1) * 5 * 8}}});
}

// Choices of each expert by layer of one rank's tokens, by a model that is whole on this rank: initial values do not
// depend on the layout.
at::Tensor counts_alone(const Case& c, int rank) {
  Case alone = c;
  alone.world = 1;
  alone.rank = 0;
  alone.shard = alone.expert = 1;
  const Layout layout(1, job_of(alone).parallel, small_model(alone).num_local_experts);
  const Axes axes = fake_axes(alone, layout, std::make_shared<TrafficCount>());
  CountedModel counted(alone, axes);
  return counted.forward_backward->evaluate(batch_of(rank, counted.config)).balance.count_LE;
}

TEST(GlooTraffic, step_of_two_ranks_sends_what_the_formula_says) {
  run_ranks(2, [](World& world) {
    using enum ActivationCheckpointing;
    for (Case c :
         {Case{.name = "shard2_expert2", .world = 2, .rank = 0, .shard = 2, .expert = 2, .micro_steps = 2},
          Case{.name = "shard2_expert1", .world = 2, .rank = 0, .shard = 2, .expert = 1, .micro_steps = 2},
          Case{.name = "shard1_expert2", .world = 2, .rank = 0, .shard = 1, .expert = 2, .checkpointing = selective},
          Case{.name = "full",
          .world = 2,
          .rank = 0,
          .shard = 2,
          .expert = 2,
          .checkpointing = full,
          .prefetch_units = 2}}) {
      SCOPED_TRACE(c.name);
      c.rank = world.rank();
      const auto count = std::make_shared<TrafficCount>();
      const Layout layout(2, job_of(c).parallel, small_model(c).num_local_experts);
      const Axes axes(layout, c.rank, [&](const AxisGroup& group, const std::string& axis) {
        return std::make_unique<CountingCommunicator>(world.communicator(group, axis), count);
      });
      CountedModel counted(c, axes);
      const at::Tensor own_LE = counts_alone(c, c.rank), peer_LE = counts_alone(c, 1 - c.rank);
      const std::vector<int64_t> rows_out = remote_rows(own_LE, c.expert, c.rank % c.expert);
      const std::vector<int64_t> rows_in = remote_rows(peer_LE, c.expert, (1 - c.rank) % c.expert);
      if (c.expert > 1) {
        EXPECT_GT(rows_out[0], 0) << "a formula without rows would say nothing of dispatch";
      }
      EXPECT_TRUE(count->reset().empty()) << "setting up sends nothing";
      for (int64_t m = 0; m < c.micro_steps; ++m) {
        const bool last = m == c.micro_steps - 1;
        const MicroStepResult result =
            counted.forward_backward->train(batch_of(c.rank, counted.config), {m == 0, last, 0.01, 1.0});
        EXPECT_TRUE(result.balance.count_LE.equal(own_LE + peer_LE));
        expect_equal(count->reset(), Expected(c, counted.config).micro_step(last, rows_out, rows_in));
      }
      const MicroStepResult result = counted.forward_backward->evaluate(batch_of(c.rank, counted.config));
      EXPECT_TRUE(std::isfinite(result.loss_sum));
      expect_equal(count->reset(), Expected(c, counted.config).evaluation(rows_out, rows_in));
    }
  });
}

}  // namespace
}  // namespace conclave
