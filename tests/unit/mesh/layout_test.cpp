#include "mesh/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/error.h"

namespace conclave {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr Axis all_axes[] = {Axis::world,          Axis::replica,      Axis::shard,
                             Axis::expert_replica, Axis::expert_shard, Axis::expert};

ParallelConfig degrees(int64_t shard, int64_t expert) {
  ParallelConfig parallel;
  parallel.hybrid_shard_degree = shard;
  parallel.expert_parallel_degree = expert;
  return parallel;
}

std::string error_of(int world, const ParallelConfig& parallel, int64_t num_experts, const Origins& origins = {}) {
  try {
    Layout layout(world, parallel, num_experts, origins);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

// Oracle: the grid is built by counting, not by division. Rank numbers are laid out with the last axis fastest, as the
// words of the design say. Each nested loop below is one view of the mesh; a rank's coordinates are the loop counters.
struct Coordinates {
  int replica, shard, expert_replica, expert_shard, expert;
};

std::vector<Coordinates> count_grid(int replicas, int shards, int expert_replicas, int expert_shards, int experts) {
  std::vector<Coordinates> ranks;
  for (int replica = 0; replica < replicas; ++replica)
    for (int shard = 0; shard < shards; ++shard) ranks.push_back({replica, shard, 0, 0, 0});
  size_t rank = 0;
  for (int replica = 0; replica < expert_replicas; ++replica) {
    for (int shard = 0; shard < expert_shards; ++shard) {
      for (int expert = 0; expert < experts; ++expert, ++rank) {
        if (rank >= ranks.size()) return {};
        ranks[rank].expert_replica = replica;
        ranks[rank].expert_shard = shard;
        ranks[rank].expert = expert;
      }
    }
  }
  return rank == ranks.size() ? ranks : std::vector<Coordinates>{};
}

// Ranks agree on every coordinate of their view but the axis's own.
bool same_group(Axis axis, const Coordinates& a, const Coordinates& b) {
  switch (axis) {
    case Axis::world:
      return true;
    case Axis::replica:
      return a.shard == b.shard;
    case Axis::shard:
      return a.replica == b.replica;
    case Axis::expert_replica:
      return a.expert_shard == b.expert_shard && a.expert == b.expert;
    case Axis::expert_shard:
      return a.expert_replica == b.expert_replica && a.expert == b.expert;
    case Axis::expert:
      return a.expert_replica == b.expert_replica && a.expert_shard == b.expert_shard;
  }
  return false;
}

int own_coordinate(Axis axis, const Coordinates& a, int rank) {
  switch (axis) {
    case Axis::world:
      return rank;
    case Axis::replica:
      return a.replica;
    case Axis::shard:
      return a.shard;
    case Axis::expert_replica:
      return a.expert_replica;
    case Axis::expert_shard:
      return a.expert_shard;
    case Axis::expert:
      return a.expert;
  }
  return -1;
}

void expect_equals_counted_grid(const Layout& layout, const std::vector<Coordinates>& grid) {
  const int world = layout.world_size();
  for (Axis axis : all_axes) {
    for (int rank = 0; rank < world; ++rank) {
      const AxisGroup group = layout.group(axis, rank);
      std::vector<int> ranks;
      for (int other = 0; other < world; ++other)
        if (same_group(axis, grid[rank], grid[other])) ranks.push_back(other);
      ASSERT_EQ(group.ranks, ranks) << name_of(axis) << " of rank " << rank;
      ASSERT_EQ(group.index, own_coordinate(axis, grid[rank], rank)) << name_of(axis) << " of rank " << rank;
      ASSERT_EQ(group.size(), layout.degree(axis));
      ASSERT_EQ(group.ranks[group.index], rank);
    }
  }
}

// A rank's experts are sharded within its dense shard group, so that both views share their memory and traffic
// locality.
void expect_expert_view_covers_dense_shard_group(const Layout& layout) {
  for (int rank = 0; rank < layout.world_size(); ++rank) {
    std::set<int> covered;
    for (int other : layout.group(Axis::expert_shard, rank).ranks)
      for (int covered_rank : layout.group(Axis::expert, other).ranks) covered.insert(covered_rank);
    const std::vector<int> dense = layout.group(Axis::shard, rank).ranks;
    ASSERT_EQ(covered, std::set<int>(dense.begin(), dense.end())) << "rank " << rank;
  }
}

// Whether whole groups of `part` tile groups of `whole`, found by stepping.
bool tiles(int whole, int part) {
  int filled = 0;
  while (filled < whole) filled += part;
  return filled == whole;
}

// Every world up to 96 with every pair of degrees; the model has 2 experts for each rank of the expert axis.
TEST(Layout, is_a_grid_or_is_refused_for_every_world_and_degrees) {
  int accepted = 0;
  for (int world = 1; world <= 96; ++world) {
    for (int shard = 1; shard <= world + 1; ++shard) {
      for (int expert = 1; expert <= world + 1; ++expert) {
        SCOPED_TRACE(fmt::format("world {}, shard {}, expert {}", world, shard, expert));
        if (!tiles(world, shard * expert)) {
          ASSERT_NE(error_of(world, degrees(shard, expert), 2 * expert), "accepted");
          continue;
        }
        ++accepted;
        const Layout layout(world, degrees(shard, expert), 2 * expert);
        // No integer division here: the degrees of the oracle's grid are those the layout claims, whose products must
        // fill the world.
        ASSERT_EQ(layout.degree(Axis::expert_shard), shard);
        ASSERT_EQ(layout.degree(Axis::expert), expert);
        ASSERT_EQ(layout.degree(Axis::shard), shard * expert);
        ASSERT_EQ(layout.degree(Axis::replica) * shard * expert, world);
        ASSERT_EQ(layout.degree(Axis::expert_replica), layout.degree(Axis::replica));
        const auto grid = count_grid(layout.degree(Axis::replica), layout.degree(Axis::shard),
                                     layout.degree(Axis::expert_replica), shard, expert);
        ASSERT_EQ(static_cast<int>(grid.size()), world);
        expect_equals_counted_grid(layout, grid);
        expect_expert_view_covers_dense_shard_group(layout);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
  EXPECT_GT(accepted, 96);  // at least (1,1) of each world: the sweep really swept
}

// The groups of SMP's example job: 64 ranks, hybrid shard degree 32, expert degree 2. It has one replica.
TEST(Layout, of_the_reference_job) {
  const Layout layout(64, degrees(32, 2), 8);
  EXPECT_EQ(layout.degree(Axis::replica), 1);
  EXPECT_EQ(layout.degree(Axis::shard), 64);
  EXPECT_EQ(layout.degree(Axis::expert_shard), 32);
  EXPECT_THAT(layout.group(Axis::expert, 35).ranks, ElementsAre(34, 35));
  EXPECT_THAT(layout.group(Axis::expert_replica, 35).ranks, ElementsAre(35));
  EXPECT_EQ(layout.group(Axis::expert_shard, 35).ranks.front(), 1);
  EXPECT_EQ(layout.group(Axis::expert_shard, 35).index, 17);
  EXPECT_EQ(
      describe(layout),
      "dense parameters:  replica 1 x shard 64 = 64 ranks\n"
      "expert parameters: expert_replica 1 x expert_shard 32 x expert 2 = 64 ranks; each rank holds 1/64 of both");
}

TEST(Layout, has_replicas_where_the_degrees_leave_ranks) {
  const Layout layout(64, degrees(16, 2), 8);
  EXPECT_EQ(layout.degree(Axis::replica), 2);
  EXPECT_THAT(layout.group(Axis::replica, 35).ranks, ElementsAre(3, 35));
  EXPECT_THAT(layout.group(Axis::expert_replica, 35).ranks, ElementsAre(3, 35));
}

TEST(Layout, shard_degree_zero_takes_all_ranks) {
  EXPECT_EQ(Layout(6, degrees(0, 2), 8).degree(Axis::shard), 6);
  EXPECT_EQ(Layout(6, degrees(0, 2), 8).degree(Axis::expert_shard), 3);
}

// Degree 1 shards nothing beside the expert axis: alone it is plain data parallelism.
TEST(Layout, shard_degree_one_does_not_shard) {
  EXPECT_EQ(Layout(8, degrees(1, 1), 8).degree(Axis::shard), 1);
  EXPECT_EQ(Layout(8, degrees(1, 4), 8).degree(Axis::expert_shard), 1);
  EXPECT_EQ(Layout(8, degrees(1, 4), 8).degree(Axis::shard), 4);
}

// The largest degrees that are at most those asked for. Oracle: the words of the header, tried from above.
TEST(Layout, degrees_fit_themselves_to_the_ranks_there_are) {
  for (int world = 1; world <= 24; ++world) {
    for (int shard : {0, 1, 2, 3, 4, 8}) {
      for (int expert : {1, 2, 4, 8}) {
        SCOPED_TRACE(fmt::format("world {}, shard {}, expert {}", world, shard, expert));
        const ParallelConfig fitted = fitting_degrees(degrees(shard, expert), world, 8);
        ASSERT_EQ(error_of(world, fitted, 8), "accepted");
        for (int64_t larger = fitted.expert_parallel_degree + 1; larger <= expert; ++larger)
          ASSERT_NE(error_of(world, degrees(1, larger), 8), "accepted");
        for (int64_t larger = fitted.hybrid_shard_degree + 1; larger <= shard; ++larger)
          ASSERT_NE(error_of(world, degrees(larger, fitted.expert_parallel_degree), 8), "accepted");
        ASSERT_EQ(shard == 0, fitted.hybrid_shard_degree == 0);
      }
    }
  }
}

// Every degree that a remedy lists is taken, and no other one would have been: the list is read back from the message.
TEST(Layout, remedies_are_complete_and_true) {
  for (int world : {1, 2, 6, 12, 64}) {
    for (int shard = 1; shard <= world; ++shard) {
      const std::string message = error_of(world, degrees(shard, 5), 8);  // 5 never divides 8 experts
      std::set<int> would_do;
      for (int expert = 1; expert <= world; ++expert)
        if (error_of(world, degrees(shard, expert), 8) == "accepted") would_do.insert(expert);
      if (would_do.empty()) continue;  // the shard degree is wrong as well
      std::vector<std::string> words;
      for (int expert : would_do) words.push_back(std::to_string(expert));
      EXPECT_THAT(message, HasSubstr("Use " + any_of(words) + ".")) << world << " " << shard;
    }
  }
}

TEST(Layout, refusals_name_key_value_reason_remedy_and_place) {
  Origins origins;
  origins.set("parallel.expert_parallel_degree", "job.yaml, line 12");
  EXPECT_EQ(error_of(8, degrees(0, 3), 8, origins),
            "parallel.expert_parallel_degree is 3, but the model has 8 experts and they must divide evenly.\n"
            "       Use 1, 2, 4 or 8.   (job.yaml, line 12)");
  EXPECT_EQ(error_of(6, degrees(0, 4), 8),
            "parallel.expert_parallel_degree is 4, but 6 ranks cannot be divided into groups of 4.\n"
            "       Use 1 or 2.");
  EXPECT_EQ(
      error_of(1, degrees(0, 2), 8),
      "parallel.expert_parallel_degree is 2, but 1 rank cannot be divided into groups of 2.\n"
      "       Say how many ranks there are (--ranks 2 of train and eval, --world 2 of validate and plan), or use 1.");
  EXPECT_EQ(error_of(8, degrees(0, 0), 8),
            "parallel.expert_parallel_degree is 0, but a degree is at least 1.\n       Use 1, 2, 4 or 8.");
  EXPECT_EQ(error_of(8, degrees(-1, 4), 8),
            "parallel.hybrid_shard_degree is -1, but a degree is at least 1, or 0 for all ranks.\n"
            "       Use 0 (all that are left: 2), 1 or 2.");
  EXPECT_EQ(
      error_of(8, degrees(8, 2), 8),
      "parallel.hybrid_shard_degree is 8, but it counts beside the expert axis, and 8 ranks cannot be divided into "
      "groups of 8 x 2 (hybrid_shard_degree x expert_parallel_degree).\n"
      "       Use 0 (all that are left: 4), 1, 2 or 4.");
  EXPECT_EQ(
      error_of(8, degrees(3, 3), 8),
      "parallel.expert_parallel_degree is 3, but the model has 8 experts and they must divide evenly.\n"
      "       Use 1, 2, 4 or 8.\n"
      "error: parallel.hybrid_shard_degree is 3, but it counts beside the expert axis, and 8 ranks cannot be divided "
      "into groups of 3 x 1 (hybrid_shard_degree x expert_parallel_degree).\n"
      "       Use 0 (all that are left: 8), 1, 2, 4 or 8.");
}

}  // namespace
}  // namespace conclave
