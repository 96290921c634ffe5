// A checkpoint of any layout is read at any other, with the model's own division of parameters over ranks.
//
// The ranks of a layout are made one after the other in this process, on axes that move no data (FakeCommunicator): a
// rank's slices follow from its place alone. They save as threads (thread_world.h), and are loaded one by one.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>

#include "checkpoint/checkpoint_reader.h"
#include "checkpoint/checkpoint_writer.h"
#include "fake_communicator.h"
#include "mixtral_shape.h"
#include "model/parameters.h"
#include "step/parallel_model.h"
#include "unit/checkpoint/thread_world.h"

namespace conclave {
namespace {

ModelConfig small_model() {
  MixtralShape config;
  config.vocab_size = 31;  // odd sizes: no shard ends where a parameter does
  config.hidden_size = 12;
  config.intermediate_size = 10;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 3;
  config.num_key_value_heads = 3;
  config.head_dim = 4;
  config.num_local_experts = 4;
  config.num_experts_per_tok = 2;
  return config;
}

struct LayoutCase {
  const char* name;
  int world;
  int64_t expert;
  int64_t shard;
};
constexpr LayoutCase layouts[] = {
    {"one", 1, 1, 0},   {"expert", 2, 2, 0},         {"expert_and_shard", 4, 2, 0}, {"replica", 4, 1, 2},
    {"eight", 8, 4, 0}, {"eight_replicas", 8, 2, 2}, {"not_divisible", 3, 1, 0},    {"experts_unsharded", 8, 4, 1}};

Layout layout_of(const LayoutCase& layout) {
  ParallelConfig parallel;
  parallel.expert_parallel_degree = layout.expert;
  parallel.hybrid_shard_degree = layout.shard;
  return Layout(layout.world, parallel, small_model().experts());
}

struct Rank {
  Rank(const LayoutCase& layout, int rank)
      : axes(layout_of(layout), rank,
             [](const AxisGroup& group, const std::string& axis) {
               return std::make_unique<FakeCommunicator>(axis, group.index, group.size());
             }),
        model(small_model(), axes, {.optimizer_state = {"exp_avg", "exp_avg_sq"}}) {
    model.allocate_parameters();
    model.allocate_training_state();
  }
  std::vector<TensorSlice> slices(ParallelModel::Replicas replicas) {
    std::vector<TensorSlice> all;
    for (const std::string& kind : model.kept()) {
      for (TensorSlice& slice : model.slices(kind, replicas)) {
        slice.name = state_tensor_name(kind, slice.name);
        all.push_back(std::move(slice));
      }
    }
    return all;
  }
  Axes axes;
  ParallelModel model;
};

// The value of an element: of its tensor's name and place alone, exact in fp32.
float value_of(const std::string& name, int64_t place) {
  return static_cast<float>((std::hash<std::string>{}(name) + static_cast<size_t>(place) * 7919) % 16777213);
}

void fill(const std::vector<TensorSlice>& slices) {
  for (const TensorSlice& slice : slices)
    for (int64_t i = 0; i < slice.data.numel(); ++i)
      slice.data.data_ptr<float>()[i] = value_of(slice.name, slice.begin + i);
}

int64_t wrong_elements(const std::vector<TensorSlice>& slices) {
  int64_t wrong = 0;
  for (const TensorSlice& slice : slices)
    for (int64_t i = 0; i < slice.data.numel(); ++i)
      wrong += slice.data.data_ptr<float>()[i] != value_of(slice.name, slice.begin + i);
  return wrong;
}

std::vector<std::unique_ptr<Rank>> ranks_of(const LayoutCase& layout) {
  std::vector<std::unique_ptr<Rank>> ranks;
  for (int rank = 0; rank < layout.world; ++rank) ranks.push_back(std::make_unique<Rank>(layout, rank));
  return ranks;
}

int64_t elements_of(const Manifest& manifest) {
  int64_t elements = 0;
  for (const auto& [name, tensor] : manifest.tensors)
    for (const Piece& piece : tensor.pieces) elements += piece.end - piece.begin;
  return elements;
}

enum class Slices { stay, are_taken_back };

class CheckpointLayouts : public ::testing::TestWithParam<std::tuple<LayoutCase, Slices>> {};
INSTANTIATE_TEST_SUITE_P(, CheckpointLayouts,
                         ::testing::Combine(::testing::ValuesIn(layouts),
                                            ::testing::Values(Slices::stay, Slices::are_taken_back)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param).name) +
                                  (std::get<1>(info.param) == Slices::are_taken_back ? "_taken_back" : "");
                         });

// Oracle: value_of(). Exact: bits are copied.
TEST_P(CheckpointLayouts, is_loaded_at_every_other) {
  const auto& [saved_at, what_slices_do] = GetParam();
  const TestFolder folder;
  const auto saving = ranks_of(saved_at);
  for (const auto& rank : saving) fill(rank->slices(ParallelModel::Replicas::all));
  ASSERT_EQ(run_ranks(saved_at.world,
                      [&](Communicator& world) {
                        CheckpointWriter writer(folder.path(), world, std::nullopt, /*hash_block_bytes=*/256);
                        Rank& rank = *saving[static_cast<size_t>(world.rank())];
                        writer.begin({.step = 3}, rank.slices(ParallelModel::Replicas::shared));
                        // Training goes on: what is changed after take_back() is not what is saved.
                        if (what_slices_do == Slices::are_taken_back) {
                          writer.take_back();
                          for (const TensorSlice& slice : rank.slices(ParallelModel::Replicas::all))
                            slice.data.fill_(-1);
                        }
                        writer.finish();
                      }),
            no_failures(saved_at.world));

  const std::filesystem::path checkpoint = folder / "step-00000003";
  // Every element once, whatever the number of replicas.
  EXPECT_EQ(elements_of(CheckpointReader(checkpoint).manifest()),
            3 * count_parameters(saving[0]->model.declarations()));
  for (const LayoutCase& loaded_at : layouts) {
    for (const auto& rank : ranks_of(loaded_at)) {
      const std::vector<TensorSlice> slices = rank->slices(ParallelModel::Replicas::all);
      for (const TensorSlice& slice : slices) slice.data.fill_(-2);
      CheckpointReader(checkpoint).load(slices);
      EXPECT_EQ(wrong_elements(slices), 0) << "saved at " << saved_at.name << ", loaded at " << loaded_at.name;
    }
  }
}

// Replicas write parts of about equal size: none of them writes for the others.
TEST(CheckpointOfReplicas, is_written_by_all_of_them) {
  const LayoutCase layout = {"replicas", 4, 1, 1};
  std::map<int, int64_t> elements;
  for (int r = 0; r < layout.world; ++r) {
    Rank rank(layout, r);
    for (const TensorSlice& slice : rank.slices(ParallelModel::Replicas::shared)) elements[r] += slice.data.numel();
  }
  const auto [least, most] = std::minmax_element(elements.begin(), elements.end(),
                                                 [](const auto& a, const auto& b) { return a.second < b.second; });
  EXPECT_GT(least->second, 0.9 * static_cast<double>(most->second));
}

}  // namespace
}  // namespace conclave
