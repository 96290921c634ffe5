// One mesh of ranks, two views. Experts see world = expert_replica x expert_shard x expert, with the expert axis over
// adjacent ranks; expert_shard is `hybrid_shard_degree`. Dense parameters see world = replica x shard, where shard =
// expert_shard x expert: the ranks that hold one copy of the experts hold one copy of everything else. Pure arithmetic:
// no process is needed to ask it anything.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/mistake.h"
#include "config/parallel_section.h"

namespace conclave {

enum class Axis { world, replica, shard, expert_replica, expert_shard, expert };

const char* name_of(Axis axis);

// The ranks that share all coordinates but that of one axis, ascending, and the place of the asking rank among them.
struct AxisGroup {
  std::vector<int> ranks;
  int index = 0;
  int size() const { return static_cast<int>(ranks.size()); }
};

class Layout {
 public:
  // Refuses degrees that do not divide with a UserError that names the degrees that would.
  // `num_experts`: the model's experts, which the expert degree must divide. `origins`: where the degrees were given,
  // for the message.
  Layout(int world_size, const ParallelConfig& parallel, int64_t num_experts, const Origins& origins = {});

  int world_size() const { return world_size_; }
  int degree(Axis axis) const;
  // The place of `rank` in its group of `axis`.
  int index(Axis axis, int rank) const { return rank / stride(axis) % degree(axis); }
  // The group of `axis` that `rank` belongs to.
  AxisGroup group(Axis axis, int rank) const;
  // How many of that group are among the ranks from `begin` to before `end`.
  int members_between(Axis axis, int rank, int begin, int end) const;

 private:
  // Ranks between neighbours of an axis's group: a rank's index on the axis is (rank / stride) % degree.
  int stride(Axis axis) const;

  int world_size_;
  int expert_;
  int expert_shard_;
};

// Of the degrees that fit the world and the model, the largest that are at most those given: for a job whose number of
// ranks changes. A shard degree of 0, the whole world, stays.
ParallelConfig fitting_degrees(ParallelConfig parallel, int world_size, int64_t num_experts);

// The arithmetic, for people: each degree by name, the products, and the share of the parameters that a rank holds.
std::string describe(const Layout& layout);

}  // namespace conclave
