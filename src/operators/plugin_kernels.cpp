#include "operators/plugin_kernels.h"

#include <torch/library.h>

#include "device/cuda_plugin.h"
#include "kernels/kernels.h"

namespace conclave {

const std::string& why_no_cuda_kernels() {
  static const std::string reason = [] {
    std::string why_not;
    if (const CudaPlugin* plugin = load_cuda_plugin(&why_not)) use_kernels(at::kCUDA, plugin->kernels);
    return why_not;
  }();
  return reason;
}

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("why_no_cuda_kernels() -> str", [] { return why_no_cuda_kernels(); });
}

}  // namespace conclave
