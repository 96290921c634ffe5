// torch.ops.conclave.group_traffic and use_memory_links: how the ranks of a Gloo group exchange rows, for tests.
#include <torch/library.h>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "operators/group_connection.h"

namespace conclave {

// [calls of collectives, bytes read from other ranks' memory] by this rank's operators over the group.
TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("group_traffic(str group) -> int[]", [](const std::string& group) {
    const GroupTraffic traffic = traffic_of(c10d::resolve_process_group(group));
    return std::vector<int64_t>{traffic.calls, traffic.bytes_read};
  });
  library.def("use_memory_links(bool use) -> ()", use_memory_links);
}

}  // namespace conclave
