// What a plan assumes of the machines: how fast one rank computes, how much memory it has, how fast it reaches its
// memory, the host and other ranks.
#pragma once

#include <c10/core/DeviceType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace conclave {

struct DeviceDescription {
  struct {
    at::DeviceType kind = at::kCUDA;  // cuda: NCCL; cpu: Gloo
  } device;
  struct {
    double fp32_flops = 0;            // peak operations per second in matrix products
    double bf16_flops = 0;            // 0: not in hardware
    double fp8_flops = 0;             // with a scale in fp32 for each block; 0: not in hardware
    double product_efficiency = 1;    // the share of the peak that products reach
    double attention_efficiency = 1;  // the share of it that attention reaches: scores, softmax, values
  } compute;
  struct {
    double bytes = 0;
    double reserved_bytes = 0;       // of these, what the engine does not account for: driver, libraries, communicators
    double bandwidth = 0;            // bytes per second that passes over memory reach, read and written
    double host_bandwidth = 0;       // bytes per second to where activations are offloaded
    double optimizer_bandwidth = 0;  // bytes per second that the optimizer reaches, whose passes no cache helps
  } memory;
  struct {
    int64_t ranks_per_node = 1;
    double node_latency = 0;     // seconds before the first byte of a message to a rank of the same node
    double node_bandwidth = 0;   // bytes per second that a rank sends within its node
    double cluster_latency = 0;  // the same across nodes
    double cluster_bandwidth = 0;
  } network;

  bool has_bf16() const { return compute.bf16_flops > 0; }
  bool has_fp8() const { return compute.fp8_flops > 0; }
  // Of one rank, at an element size of `compute_bytes`.
  double peak_flops(int64_t compute_bytes) const {
    return compute_bytes == 2 ? compute.bf16_flops : compute.fp32_flops;
  }
  double usable_bytes() const { return memory.bytes - memory.reserved_bytes; }
};

// "h100-80, h200-141, a100-80 and cpu".
std::vector<std::string> built_in_devices();

// A built-in description by its name, or a YAML file of the same keys. Refuses with a UserError that names the
// mistakes.
DeviceDescription read_device(const std::string& name_or_file);

// The description as YAML that reads back the same.
std::string print_device(DeviceDescription device);

}  // namespace conclave
