// How long a collective takes on machines that are described.
#pragma once

#include <string>
#include <vector>

#include "device/paper_device.h"
#include "planner/device_description.h"

namespace conclave {

GroupOnNodes group_on_nodes(const Layout& layout, Axis axis, int rank, const DeviceDescription& device);

// Seconds of one collective of the group, each rank of which sends `bytes` in all (mesh/collective_bytes.h).
double collective_seconds(CollectivePattern pattern, double bytes, const GroupOnNodes& group,
                          const DeviceDescription& device);

// What the time of a plan assumes, for people.
std::vector<std::string> assumptions_of_time(const DeviceDescription& device);

}  // namespace conclave
