// The one place that touches Gloo's own types: network devices and process groups.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <memory>

#include "comm/process.h"

namespace conclave {

class GlooDevice;  // a bound network address and the thread that moves its data

// Bound to the interface named by GLOO_SOCKET_IFNAME, else to address_for_peers().
std::shared_ptr<GlooDevice> make_gloo_device(const Process& process);

// Connects `size` ranks with each other; `store` is theirs alone. Throws c10d's errors when a rank does not come.
c10::intrusive_ptr<c10d::Backend> make_gloo_group(const GlooDevice& device,
                                                  const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                                  std::chrono::milliseconds timeout);

}  // namespace conclave
