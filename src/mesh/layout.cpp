#include "mesh/layout.h"

#include <algorithm>
#include <functional>

#include "base/error.h"

namespace conclave {
namespace {

constexpr const char* shard_key = "parallel.hybrid_shard_degree";
constexpr const char* expert_key = "parallel.expert_parallel_degree";

// The expert groups and the dense shard groups must nest, or the shards of one expert would belong to parts of several
// dense groups.
bool nest(int64_t shard, int64_t expert) {
  return shard % expert == 0 || expert % shard == 0;
}

// "1, 2, 4 or 8": the degrees of at most `world` that suit. Never empty, because degree 1 suits any world, model and
// other degree.
std::string degrees_that(const std::function<bool(int64_t)>& suit, int world) {
  std::vector<std::string> degrees;
  for (int degree = 1; degree <= world; ++degree) {
    if (suit(degree)) degrees.push_back(std::to_string(degree));
  }
  return any_of(degrees);
}

std::vector<std::string> mistakes_in_degrees(int world, const ParallelConfig& parallel, int64_t num_experts,
                                             const Origins& origins) {
  const int64_t shard = parallel.hybrid_shard_degree == 0 ? world : parallel.hybrid_shard_degree;
  const int64_t expert = parallel.expert_parallel_degree;
  const auto divides_world = [&](int64_t degree) { return degree >= 1 && world % degree == 0; };
  const auto divides_experts = [&](int64_t degree) { return divides_world(degree) && num_experts % degree == 0; };
  // A remedy takes the other degree into account where that one can stay as it is.
  const std::string shards = degrees_that(
      [&](int64_t degree) { return divides_world(degree) && (!divides_experts(expert) || nest(degree, expert)); },
      world);
  const std::string experts = degrees_that(
      [&](int64_t degree) { return divides_experts(degree) && (!divides_world(shard) || nest(shard, degree)); }, world);

  std::vector<std::string> mistakes;
  const auto refuse = [&](const char* key, int64_t value, const std::string& reason, const std::string& remedy) {
    mistakes.push_back(mistake(fmt::format("{} is {}, but {}.", key, value, reason), remedy, origins.of(key)));
  };
  const auto does_not_divide_world = [&](int64_t degree) {
    return fmt::format("{} {} cannot be divided into groups of {}", world, world == 1 ? "rank" : "ranks", degree);
  };

  if (shard < 1) {
    refuse(shard_key, shard, "a degree is at least 1, or 0 for the whole world",
           fmt::format("Use 0 (the whole world), {}.", shards));
  } else if (!divides_world(shard)) {
    refuse(shard_key, shard, does_not_divide_world(shard), fmt::format("Use 0 (the whole world), {}.", shards));
  }
  if (expert < 1) {
    refuse(expert_key, expert, "a degree is at least 1", fmt::format("Use {}.", experts));
  } else if (num_experts % expert != 0) {
    refuse(expert_key, expert, fmt::format("the model has {} experts and they must divide evenly", num_experts),
           fmt::format("Use {}.", experts));
  } else if (!divides_world(expert)) {
    refuse(expert_key, expert, does_not_divide_world(expert), fmt::format("Use {}.", experts));
  }
  if (mistakes.empty() && !nest(shard, expert)) {
    refuse(expert_key, expert,
           fmt::format("{} is {}, and one of the two must be a multiple of the other", shard_key, shard),
           fmt::format("Use {}, or a {} of {}.", experts, shard_key, shards));
  }
  return mistakes;
}

}  // namespace

const char* name_of(Axis axis) {
  switch (axis) {
    case Axis::world:
      return "world";
    case Axis::replica:
      return "replica";
    case Axis::shard:
      return "shard";
    case Axis::expert_replica:
      return "expert_replica";
    case Axis::expert_shard:
      return "expert_shard";
    case Axis::expert:
      return "expert";
  }
  return "unknown axis";
}

Layout::Layout(int world_size, const ParallelConfig& parallel, int64_t num_experts, const Origins& origins)
    : world_size_(world_size) {
  check_invariant(world_size >= 1, "world size ({}) >= 1", world_size);
  check_invariant(num_experts >= 1, "number of experts ({}) >= 1", num_experts);
  refuse_if_any(mistakes_in_degrees(world_size, parallel, num_experts, origins));
  shard_ = parallel.hybrid_shard_degree == 0 ? world_size : static_cast<int>(parallel.hybrid_shard_degree);
  expert_ = static_cast<int>(parallel.expert_parallel_degree);
  expert_shard_ = shard_ >= expert_ ? shard_ / expert_ : 1;
}

int Layout::degree(Axis axis) const {
  switch (axis) {
    case Axis::world:
      return world_size_;
    case Axis::replica:
      return world_size_ / shard_;
    case Axis::shard:
      return shard_;
    case Axis::expert_replica:
      return world_size_ / (expert_ * expert_shard_);
    case Axis::expert_shard:
      return expert_shard_;
    case Axis::expert:
      return expert_;
  }
  return 0;
}

int Layout::stride(Axis axis) const {
  switch (axis) {
    case Axis::world:
    case Axis::shard:
    case Axis::expert:
      return 1;
    case Axis::replica:
      return shard_;
    case Axis::expert_shard:
      return expert_;
    case Axis::expert_replica:
      return expert_ * expert_shard_;
  }
  return 0;
}

AxisGroup Layout::group(Axis axis, int rank) const {
  check_invariant(rank >= 0 && rank < world_size_, "rank ({}) is one of the world's {}", rank, world_size_);
  AxisGroup group;
  group.index = index(axis, rank);
  const int first = rank - group.index * stride(axis);
  for (int index = 0; index < degree(axis); ++index) group.ranks.push_back(first + index * stride(axis));
  return group;
}

ParallelConfig fitting_degrees(ParallelConfig parallel, int world_size, int64_t num_experts) {
  int64_t& expert = parallel.expert_parallel_degree;
  expert = std::min<int64_t>(expert, world_size);
  while (expert > 1 && (world_size % expert != 0 || num_experts % expert != 0)) --expert;
  int64_t& shard = parallel.hybrid_shard_degree;
  shard = std::min<int64_t>(shard, world_size);
  while (shard > 1 && (world_size % shard != 0 || !nest(shard, expert))) --shard;
  return parallel;
}

std::string describe(const Layout& layout) {
  const auto degree = [&](Axis axis) { return layout.degree(axis); };
  const int share = degree(Axis::expert_shard) * degree(Axis::expert);
  return fmt::format(
      "dense parameters:  replica {} x shard {} = {} ranks; each rank holds 1/{}\n"
      "expert parameters: expert_replica {} x expert_shard {} x expert {} = {} ranks; each rank holds 1/{}",
      degree(Axis::replica), degree(Axis::shard), degree(Axis::replica) * degree(Axis::shard), degree(Axis::shard),
      degree(Axis::expert_replica), degree(Axis::expert_shard), degree(Axis::expert),
      degree(Axis::expert_replica) * share, share);
}

}  // namespace conclave
