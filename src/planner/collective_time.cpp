#include "planner/collective_time.h"

#include <fmt/format.h>

#include <algorithm>

namespace conclave {

GroupOnNodes group_on_nodes(const Layout& layout, Axis axis, int rank, const DeviceDescription& device) {
  const int64_t on_a_node = device.network.ranks_per_node;
  const int64_t begin = rank / on_a_node * on_a_node;
  const int64_t end = std::min<int64_t>(begin + on_a_node, layout.world_size());
  return {layout.degree(axis), layout.members_between(axis, rank, static_cast<int>(begin), static_cast<int>(end))};
}

double collective_seconds(CollectivePattern pattern, double bytes, const GroupOnNodes& group,
                          const DeviceDescription& device) {
  const auto& network = device.network;
  const double here = group.here, size = group.ranks, others = size - 1;
  const bool across = here < size;
  const double latency = others * (across ? network.cluster_latency : network.node_latency);
  if (!across) return latency + bytes / network.node_bandwidth;
  const double away = bytes * (size - here) / others;
  const double within = bytes - away;
  // NCCL's rings pass a part that came from another node on within the node: each part crosses once for each node, not
  // once for each rank. Gloo's collectives here, and all_to_all anywhere, send to each rank by itself.
  const bool rings = device.device.kind == at::kCUDA && pattern != CollectivePattern::all_to_all;
  if (rings) return latency + std::max(away / here / network.cluster_bandwidth, bytes / network.node_bandwidth);
  return latency + std::max(away / network.cluster_bandwidth, within / network.node_bandwidth);
}

std::vector<std::string> assumptions_of_time(const DeviceDescription& device) {
  const auto& network = device.network;
  std::vector<std::string> lines;
  lines.push_back(fmt::format(
      "matrix products reach {:.0f} % of the peak (compute.product_efficiency): {:.3g} TFLOP/s in fp8, {:.3g} in bf16, "
      "{:.3g} in fp32",
      100 * device.compute.product_efficiency, device.compute.fp8_flops * device.compute.product_efficiency / 1e12,
      device.compute.bf16_flops * device.compute.product_efficiency / 1e12,
      device.compute.fp32_flops * device.compute.product_efficiency / 1e12));
  lines.push_back(fmt::format("everything between the products is bound by memory, at {:.3g} GB/s (memory.bandwidth)",
                              device.memory.bandwidth / 1e9));
  lines.emplace_back(
      fmt::format("{} ranks a node; a rank sends {:.3g} GB/s within it ({:.3g} us a message) and {:.3g} GB/s "
                  "across ({:.3g} us)",
                  network.ranks_per_node, network.node_bandwidth / 1e9, network.node_latency * 1e6,
                  network.cluster_bandwidth / 1e9, network.cluster_latency * 1e6));
  lines.emplace_back(
      "gathers of the next units and the reduction of the last one run under the computation, one after the other; "
      "dispatch (but for moe.dispatch_chunks) is waited for; links are not shared with anybody");
  lines.push_back(fmt::format("offloaded inputs move at {:.3g} GB/s beside everything else (memory.host_bandwidth)",
                              device.memory.host_bandwidth / 1e9));
  lines.emplace_back("the data loader, validation and checkpoints take no time");
  return lines;
}

}  // namespace conclave
