#include "mesh/flat_layout.h"

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"

namespace conclave {
namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  while (value % multiple != 0) ++value;
  return value;
}

ParameterDeclaration parameter_of(std::vector<int64_t> shape, ParameterKind kind) {
  ParameterDeclaration parameter;
  parameter.shape = std::move(shape);
  parameter.kind = kind;
  return parameter;
}

// Odd shapes on purpose: primes, ones, a parameter smaller than one shard, one with a single element.
std::vector<ParameterDeclaration> random_parameters(std::mt19937_64& random, ParameterKind kind, int experts) {
  std::vector<ParameterDeclaration> parameters;
  const auto pick = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  const int64_t count = pick(1, 6);
  for (int64_t i = 0; i < count; ++i) {
    ParameterDeclaration parameter;
    parameter.name = fmt::format("p{}", i);
    parameter.kind = kind;
    if (kind == ParameterKind::expert) parameter.shape.push_back(experts);
    const int64_t dims = pick(1, 2);
    for (int64_t d = 0; d < dims; ++d) parameter.shape.push_back(pick(1, 37));
    parameters.push_back(parameter);
  }
  return parameters;
}

// Oracle: counting. Every element of every global parameter is marked by the slices of all (expert index, shard index)
// pairs, and must have been marked once; every element of a shard by at most one slice. The size is the header's
// sentence worked out by addition.
void expect_tiles_once(const std::vector<ParameterDeclaration>& parameters, int expert_degree, int degree) {
  std::vector<std::vector<int>> marked;
  for (const ParameterDeclaration& parameter : parameters) marked.emplace_back(parameter.numel(), 0);
  for (int expert = 0; expert < expert_degree; ++expert) {
    const FlatLayout layout(parameters, expert, expert_degree, degree);
    int64_t aligned = 0;
    ASSERT_EQ(layout.placements().size(), parameters.size());
    for (size_t i = 0; i < parameters.size(); ++i) {
      const FlatLayout::Placement& placement = layout.placements()[i];
      EXPECT_EQ(placement.offset, aligned) << "parameter " << i;
      EXPECT_EQ(placement.numel, parameters[i].numel() / expert_degree);
      EXPECT_EQ(placement.global_begin, expert * placement.numel);
      std::vector<int64_t> shape = parameters[i].shape;
      if (parameters[i].kind == ParameterKind::expert) shape[0] /= expert_degree;
      EXPECT_EQ(placement.shape, shape);
      aligned += round_up(placement.numel, 16);
    }
    ASSERT_EQ(layout.numel(), round_up(aligned, 16 * degree));
    ASSERT_EQ(layout.shard_numel() * degree, layout.numel());
    for (int shard = 0; shard < degree; ++shard) {
      int64_t end = 0;  // slices ascend and do not overlap
      for (const FlatLayout::Slice& slice : layout.slices(shard)) {
        ASSERT_GE(slice.shard_offset, end);
        ASSERT_GT(slice.numel, 0);
        end = slice.shard_offset + slice.numel;
        ASSERT_LE(end, layout.shard_numel());
        // The slice lies in the shard where its parameter's placement says.
        const FlatLayout::Placement& placement = layout.placements()[slice.parameter];
        EXPECT_EQ(shard * layout.shard_numel() + slice.shard_offset,
                  placement.offset + slice.begin - placement.global_begin);
        for (int64_t element = slice.begin; element < slice.begin + slice.numel; ++element)
          ++marked[slice.parameter].at(element);
      }
    }
  }
  for (size_t i = 0; i < marked.size(); ++i)
    for (size_t element = 0; element < marked[i].size(); ++element)
      ASSERT_EQ(marked[i][element], 1) << "parameter " << i << ", element " << element;
}

TEST(FlatLayout, slices_of_all_shards_tile_dense_parameters_once) {
  constexpr uint64_t seed = 20240229;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937_64 random(seed);
  for (const int degree : {1, 2, 3, 4, 5, 7, 8, 16, 64})
    for (int repeat = 0; repeat < 8; ++repeat) {
      SCOPED_TRACE(fmt::format("degree {}, repeat {}", degree, repeat));
      expect_tiles_once(random_parameters(random, ParameterKind::dense, 1), 1, degree);
    }
}

TEST(FlatLayout, slices_of_all_ranks_tile_expert_parameters_once) {
  constexpr uint64_t seed = 20240301;
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937_64 random(seed);
  for (const int expert_degree : {1, 2, 3, 4, 8})
    for (const int local : {1, 3})
      for (const int degree : {1, 2, 3, 8}) {
        SCOPED_TRACE(fmt::format("expert degree {}, experts of a rank {}, degree {}", expert_degree, local, degree));
        expect_tiles_once(random_parameters(random, ParameterKind::expert, expert_degree * local), expert_degree,
                          degree);
      }
}

// More shards than elements: the shards at the end hold padding alone.
TEST(FlatLayout, shards_may_hold_padding_alone) {
  const FlatLayout layout({parameter_of({5}, ParameterKind::dense)}, 0, 1, 4);
  EXPECT_EQ(layout.numel(), 64);
  EXPECT_EQ(layout.slices(0).size(), 1u);
  for (int shard = 1; shard < 4; ++shard) EXPECT_TRUE(layout.slices(shard).empty());
}

TEST(FlatLayout, refuses_experts_that_do_not_divide) {
  EXPECT_THROW(FlatLayout({parameter_of({6, 2}, ParameterKind::expert)}, 0, 4, 1), InvariantError);
}

}  // namespace
}  // namespace conclave
