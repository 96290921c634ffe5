// Connections over process groups of CPU ranks that a PyTorch program has made: ranks of one host read each other's
// memory (comm/memory_link.h), others go by the group's own Gloo backend.
//
// A group has a link of its own: the group's ranks alone open it, at the first collective that they call. It ends at
// the next operator's call, of any group, after the group has ended. Nothing here keeps a group or its store: a program
// may destroy its groups, and make others by the same names at the same address.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include <memory>
#include <string>

#include "comm/connection.h"

namespace conclave {

// The backend that moves the group's CPU tensors, if that is Gloo and takes single sends; else null. It does not where
// TORCH_DISTRIBUTED_DEBUG is DETAIL: c10d then compares how many calls of its own each rank has made.
c10::intrusive_ptr<c10d::Backend> gloo_of(c10d::ProcessGroup& group);

// For the collectives of one operator; the group's `gloo` is kept as long as it lives. Collective over the group.
// Throws PeerLostError.
std::shared_ptr<Connection> connect(const std::string& axis, const c10::intrusive_ptr<c10d::ProcessGroup>& group,
                                    c10::intrusive_ptr<c10d::Backend> gloo);

// For tests: from now on ranks read each other's memory, or not. All ranks of a group must use the same.
void use_memory_links(bool use);

struct GroupTraffic {
  int64_t calls = 0;       // of collectives
  int64_t bytes_read = 0;  // from other ranks' memory
};
GroupTraffic traffic_of(const c10::intrusive_ptr<c10d::ProcessGroup>& group);

}  // namespace conclave
