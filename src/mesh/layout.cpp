#include "mesh/layout.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "base/error.h"

namespace conclave {
namespace {

constexpr const char* shard_key = "parallel.hybrid_shard_degree";
constexpr const char* expert_key = "parallel.expert_parallel_degree";

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
  const int64_t shard = parallel.hybrid_shard_degree;
  const int64_t expert = parallel.expert_parallel_degree;
  const auto divides_world = [&](int64_t degree) { return degree >= 1 && world % degree == 0; };
  const auto divides_experts = [&](int64_t degree) { return divides_world(degree) && num_experts % degree == 0; };
  // A remedy leaves the other degree as it is if that one can stay. Only a mistake needs the lists: a search makes
  // thousands of layouts.
  const int64_t kept_expert = divides_experts(expert) ? expert : 1;
  const int64_t kept_shard = divides_world(shard) ? shard : 1;
  const auto shards = [&] {
    return fmt::format("0 (all that are left: {}), {}", world / kept_expert,
                       degrees_that([&](int64_t degree) { return divides_world(degree * kept_expert); }, world));
  };
  const auto experts = [&] {
    return degrees_that([&](int64_t degree) { return divides_experts(degree) && divides_world(degree * kept_shard); },
                        world);
  };

  std::vector<std::string> mistakes;
  const auto refuse = [&](const char* key, int64_t value, const std::string& reason, const std::string& remedy) {
    mistakes.push_back(mistake(fmt::format("{} is {}, but {}.", key, value, reason), remedy, origins.of(key)));
  };
  const std::string ranks = fmt::format("{} {}", world, world == 1 ? "rank" : "ranks");
  // One rank is what commands take that were not told how many there are.
  const auto remedy = [&](const std::string& degrees) {
    if (world > 1) return fmt::format("Use {}.", degrees);
    return fmt::format(
        "Say how many ranks there are (--ranks {0} of train and eval, --world {0} of validate and plan), or use {1}.",
        std::max<int64_t>(shard, 1) * std::max<int64_t>(expert, 1), degrees);
  };

  if (expert < 1) {
    refuse(expert_key, expert, "a degree is at least 1", fmt::format("Use {}.", experts()));
  } else if (num_experts % expert != 0) {
    refuse(expert_key, expert, fmt::format("the model has {} experts and they must divide evenly", num_experts),
           fmt::format("Use {}.", experts()));
  } else if (!divides_world(expert)) {
    refuse(expert_key, expert, fmt::format("{} cannot be divided into groups of {}", ranks, expert), remedy(experts()));
  }
  if (shard < 0) {
    refuse(shard_key, shard, "a degree is at least 1, or 0 for all ranks", fmt::format("Use {}.", shards()));
  } else if (shard > 0 && !divides_world(shard * kept_expert)) {
    refuse(shard_key, shard,
           fmt::format("it counts beside the expert axis, and {} cannot be divided into groups of {} x {} "
                       "(hybrid_shard_degree x expert_parallel_degree)",
                       ranks, shard, kept_expert),
           remedy(shards()));
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
  expert_ = static_cast<int>(parallel.expert_parallel_degree);
  expert_shard_ =
      parallel.hybrid_shard_degree == 0 ? world_size / expert_ : static_cast<int>(parallel.hybrid_shard_degree);
}

int Layout::degree(Axis axis) const {
  switch (axis) {
    case Axis::world:
      return world_size_;
    case Axis::shard:
      return expert_shard_ * expert_;
    case Axis::replica:
    case Axis::expert_replica:
      return world_size_ / (expert_shard_ * expert_);
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
    case Axis::expert_shard:
      return expert_;
    case Axis::replica:
    case Axis::expert_replica:
      return expert_shard_ * expert_;
  }
  return 0;
}

AxisGroup Layout::group(Axis axis, int rank) const {
  check_invariant(rank >= 0 && rank < world_size_, "rank ({}) is one of the world's {}", rank, world_size_);
  AxisGroup group;
  group.index = index(axis, rank);
  const int step = stride(axis), first = rank - group.index * step;
  group.ranks.resize(static_cast<size_t>(degree(axis)));
  for (size_t index = 0; index < group.ranks.size(); ++index)
    group.ranks[index] = first + static_cast<int>(index) * step;
  return group;
}

int Layout::members_between(Axis axis, int rank, int begin, int end) const {
  const int first = rank - index(axis, rank) * stride(axis);
  // Of the members first, first + stride, ..., those before `limit`.
  const auto before = [&](int limit) {
    const int length = std::max(limit - first, 0);
    return std::min(degree(axis), (length + stride(axis) - 1) / stride(axis));
  };
  return std::max(before(end) - before(begin), 0);
}

ParallelConfig fitting_degrees(ParallelConfig parallel, int world_size, int64_t num_experts) {
  int64_t& expert = parallel.expert_parallel_degree;
  expert = std::min<int64_t>(expert, world_size);
  while (expert > 1 && (world_size % expert != 0 || num_experts % expert != 0)) --expert;
  int64_t& shard = parallel.hybrid_shard_degree;
  shard = std::min<int64_t>(shard, world_size / expert);
  while (shard > 1 && world_size % (shard * expert) != 0) --shard;
  return parallel;
}

std::string describe(const Layout& layout) {
  const auto degree = [&](Axis axis) { return layout.degree(axis); };
  return fmt::format(
      "dense parameters:  replica {} x shard {} = {} ranks\n"
      "expert parameters: expert_replica {} x expert_shard {} x expert {} = {} ranks; each rank holds 1/{} of both",
      degree(Axis::replica), degree(Axis::shard), layout.world_size(), degree(Axis::expert_replica),
      degree(Axis::expert_shard), degree(Axis::expert), layout.world_size(), degree(Axis::shard));
}

}  // namespace conclave
