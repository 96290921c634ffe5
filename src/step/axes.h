// The communicators of this rank: one for each axis of the mesh, and one for the whole world.
#pragma once

#include <array>
#include <functional>
#include <memory>

#include "comm/communicator.h"
#include "mesh/layout.h"
#include "sharding/unit.h"

namespace conclave {

class Axes {
 public:
  using MakeCommunicator =
      std::function<std::unique_ptr<Communicator>(const AxisGroup& group, const std::string& axis)>;

  // All ranks call it alike: the axes are made in one fixed order.
  Axes(const Layout& layout, int rank, const MakeCommunicator& make);

  Communicator& of(Axis axis) const { return *communicators_.at(static_cast<size_t>(axis)); }
  Communicator& world() const { return of(Axis::world); }
  ShardingAxes sharding() const;

 private:
  std::array<std::unique_ptr<Communicator>, 6> communicators_;
};

}  // namespace conclave
