// What the kernel says of another process of this host.
#pragma once

#include <string>

namespace conclave {

// One kernel, one view of its processes, and one network: what a job takes for a host. Empty where the kernel does not
// say.
std::string name_of_host();

// "its process (4711) is stopped, as by SIGSTOP: SIGCONT lets it go on"; empty where it is as it should be.
std::string trouble_of_process(int process);

}  // namespace conclave
