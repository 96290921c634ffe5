#include "planner/device_description.h"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <optional>

#include "base/error.h"
#include "config/field_reader.h"
#include "config/nearest_name.h"

namespace conclave {
namespace {

Fields fields_of(DeviceDescription& device) {
  Fields fields;
  fields.section("device", "what computes");
  fields.field("device.kind", device.device.kind, OneOf<at::DeviceType>{{{"cuda", at::kCUDA}, {"cpu", at::kCPU}}},
               "cuda: a rank is a GPU, and speaks by NCCL; cpu: by Gloo");
  fields.section("compute", "of one rank");
  fields.field("compute.fp32_flops", device.compute.fp32_flops, more_than(0),
               "peak operations per second of fp32 matrix products");
  fields.field("compute.bf16_flops", device.compute.bf16_flops, at_least(0), "the same in bf16; 0: not in hardware");
  fields.field("compute.fp8_flops", device.compute.fp8_flops, at_least(0),
               "the same in fp8 with a scale for each block; 0: not in hardware");
  fields.field("compute.product_efficiency", device.compute.product_efficiency,
               NumberRange{.least = 0, .most = 1, .without_least = true}, "the share of the peak that products reach");
  fields.field("compute.attention_efficiency", device.compute.attention_efficiency,
               NumberRange{.least = 0, .most = 1, .without_least = true},
               "the share of it that attention reaches: scores, softmax and values");
  fields.section("memory", "of one rank");
  fields.field("memory.bytes", device.memory.bytes, more_than(0), "of the device");
  fields.field("memory.reserved_bytes", device.memory.reserved_bytes, at_least(0),
               "of these, what the engine does not account for: driver, libraries, communicators");
  fields.field("memory.bandwidth", device.memory.bandwidth, more_than(0),
               "bytes per second that passes over memory reach, read and written");
  fields.field("memory.host_bandwidth", device.memory.host_bandwidth, more_than(0),
               "bytes per second to where activations are offloaded");
  fields.field("memory.optimizer_bandwidth", device.memory.optimizer_bandwidth, more_than(0),
               "bytes per second that the optimizer reaches, whose passes no cache helps");
  fields.section("network", "between ranks; bandwidths are what one rank sends, and reach");
  fields.field("network.ranks_per_node", device.network.ranks_per_node, size_of_at_least(1), "ranks of one machine");
  fields.field("network.node_latency", device.network.node_latency, at_least(0),
               "seconds before the first byte of a message within a node");
  fields.field("network.node_bandwidth", device.network.node_bandwidth, more_than(0), "bytes per second within a node");
  fields.field("network.cluster_latency", device.network.cluster_latency, at_least(0), "seconds, across nodes");
  fields.field("network.cluster_bandwidth", device.network.cluster_bandwidth, more_than(0),
               "bytes per second across nodes");
  return fields;
}

constexpr double gib = 1024.0 * 1024 * 1024;

// Peaks, capacities and link rates: NVIDIA's data sheets (dense, without sparsity; SXM). Reached shares: what large
// products and collectives commonly reach; stated in the plan, to be replaced by one's own measurement.
DeviceDescription gpu(double fp32, double bf16, double fp8, double efficiency, double memory_gib, double bandwidth,
                      double host_link, double nvlink, double nic) {
  constexpr double reached = 0.8;
  DeviceDescription device;
  device.device.kind = at::kCUDA;
  device.compute = {fp32, bf16, fp8, efficiency, efficiency};
  device.memory = {memory_gib * gib, 2 * gib, reached * bandwidth, reached * host_link, reached * bandwidth};
  device.network = {8, 5e-6, reached * nvlink, 15e-6, reached * nic};
  return device;
}

// One core with AVX512 of a small cloud machine, measured; ranks on one machine speak over loopback.
DeviceDescription core() {
  DeviceDescription device;
  device.device.kind = at::kCPU;
  device.compute = {92e9, 204e9, 0, 0.85, 0.85};
  device.memory = {8 * gib, 0.2 * gib, 19e9, 1e9, 19e9};
  device.network = {64, 50e-6, 4e9, 100e-6, 1e9};
  return device;
}

const std::map<std::string, DeviceDescription>& built_in() {
  static const std::map<std::string, DeviceDescription> devices = {
      {"a100-80", gpu(19.5e12, 312e12, 0, 0.7, 80, 2.04e12, 32e9, 300e9, 25e9)},
      {"cpu", core()},
      {"h100-80", gpu(67e12, 989e12, 1979e12, 0.55, 79.6, 3.35e12, 64e9, 450e9, 50e9)},
      {"h200-141", gpu(67e12, 989e12, 1979e12, 0.55, 140.4, 4.8e12, 64e9, 450e9, 50e9)},
  };
  return devices;
}

DeviceDescription read_file(const std::string& file) {
  DeviceDescription device;
  const Fields fields = fields_of(device);
  const FieldNames names = names_of(fields);
  GivenJob given = read_given_file(file, names.sections, names.keys, "device description");
  GivenByName by_name;
  for (Given& one : given.keys) by_name[one.key].push_back(std::move(one));
  FieldReader reader(std::move(by_name), std::move(given.mistakes));
  reader.read(fields);
  reader.refuse_the_rest(names);
  std::vector<std::string> missing;
  for (const std::string& key : names.keys)
    if (reader.origins().of(key).empty() && reader.knows(key)) missing.push_back(key);
  if (!missing.empty())
    reader.add_last(mistake(fmt::format("the device description lacks {}.", fmt::join(missing, ", ")),
                            "A description has every key: `conclave plan --help` prints one.", file));
  reader.refuse_if_any();
  return device;
}

}  // namespace

std::vector<std::string> built_in_devices() {
  std::vector<std::string> names;
  for (const auto& [name, device] : built_in()) names.push_back(name);
  return names;
}

DeviceDescription read_device(const std::string& name_or_file) {
  const auto found = built_in().find(name_or_file);
  if (found != built_in().end()) return found->second;
  if (std::filesystem::exists(name_or_file)) return read_file(name_or_file);
  const std::vector<std::string> names = built_in_devices();
  const std::optional<std::string> near = nearest_name(name_or_file, names);
  user_error(
      "--device is {}, which is neither a device that is built in nor a file.{} Use {}, or the path of a YAML file.",
      name_or_file, near ? fmt::format(" Did you mean {}?", *near) : "", any_of(names));
}

std::string print_device(DeviceDescription device) {
  return print_fields(fields_of(device), /*width=*/28);
}

}  // namespace conclave
