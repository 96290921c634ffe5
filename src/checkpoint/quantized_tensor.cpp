#include "checkpoint/quantized_tensor.h"

namespace conclave {

std::unique_ptr<QuantizedTensor> find_quantized(const HuggingFaceFiles& files, const DiskTensor& tensor) {
  std::unique_ptr<QuantizedTensor> found = find_mxfp4(files, tensor);
  return found != nullptr ? std::move(found) : find_fp8(files, tensor);
}

bool is_stored(const HuggingFaceFiles& files, const std::string& name) {
  return files.find(name).tensor != nullptr || files.find(name + "_blocks").tensor != nullptr;
}

}  // namespace conclave
