#include "comm/gloo.h"

#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstdlib>
#include <string>

#include "base/error.h"
#include "base/first_line.h"
#include "comm/rendezvous.h"

namespace conclave {

class GlooDevice {
 public:
  std::shared_ptr<::gloo::transport::Device> device;
};

std::shared_ptr<GlooDevice> make_gloo_device(const Process& process) {
  const char* interface = std::getenv("GLOO_SOCKET_IFNAME");
  if (interface == nullptr || *interface == '\0')
    return std::make_shared<GlooDevice>(
        GlooDevice{c10d::ProcessGroupGloo::createDeviceForHostname(address_for_peers(process))});
  try {
    return std::make_shared<GlooDevice>(GlooDevice{c10d::ProcessGroupGloo::createDeviceForInterface(interface)});
  } catch (const std::exception& error) {
    user_error("GLOO_SOCKET_IFNAME is \"{}\", which cannot be used as a network interface of this host: {}", interface,
               first_line(error.what()));
  }
}

c10::intrusive_ptr<c10d::Backend> make_gloo_group(const GlooDevice& device,
                                                  const c10::intrusive_ptr<c10d::Store>& store, int rank, int size,
                                                  std::chrono::milliseconds timeout) {
  auto options = c10d::ProcessGroupGloo::Options::create(timeout);
  options->devices = {device.device};
  options->threads = 1;  // sends and receives are moved by the device's thread; c10d's own collectives are not used
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, rank, size, options);
}

}  // namespace conclave
