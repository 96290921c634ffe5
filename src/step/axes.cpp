#include "step/axes.h"

namespace conclave {

Axes::Axes(const Layout& layout, int rank, const MakeCommunicator& make) {
  for (Axis axis : {Axis::world, Axis::replica, Axis::shard, Axis::expert_replica, Axis::expert_shard, Axis::expert})
    communicators_[static_cast<size_t>(axis)] = make(layout.group(axis, rank), name_of(axis));
}

ShardingAxes Axes::sharding() const {
  return {of(Axis::shard), of(Axis::replica), of(Axis::expert), of(Axis::expert_shard), of(Axis::expert_replica)};
}

}  // namespace conclave
