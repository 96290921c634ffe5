// torch.ops.conclave.program_names: where the parameters of a model of Transformers lie in the program's own tensors.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <functional>
#include <numeric>

#include "base/error.h"
#include "families/family.h"

namespace conclave {
namespace {

// By place: the name in Transformers, the program's name, its shape, the first element and how many there are.
using Names = std::tuple<std::vector<std::string>, std::vector<std::string>, std::vector<at::Tensor>,
                         std::vector<int64_t>, std::vector<int64_t>>;

void add(Names& names, const DiskNames& parameter, const std::vector<DiskTensor>& parts) {
  int64_t begin = 0;
  for (const DiskTensor& part : parts) {
    const int64_t count = std::accumulate(part.shape.begin(), part.shape.end(), int64_t{1}, std::multiplies<int64_t>());
    std::get<0>(names).push_back(part.name);
    std::get<1>(names).push_back(parameter.parameter);
    std::get<2>(names).push_back(at::tensor(parameter.shape, at::kLong));
    std::get<3>(names).push_back(begin);
    std::get<4>(names).push_back(count);
    begin += count;
  }
}

// Nothing: the config is of no family, or one that the program refuses.
// NOLINTNEXTLINE(performance-unnecessary-value-param): PyTorch hands strings by value
Names program_names(std::string config) {
  Names names;
  try {
    for (const DiskNames& parameter : disk_names(parse_model_config(config, "config.json"))) {
      // In memory Transformers has all experts' matrices in one tensor.
      const bool of_experts = parameter.parts.size() > 1 && !parameter.alternative.empty();
      if (!of_experts) add(names, parameter, parameter.parts);
      add(names, parameter, parameter.alternative);
    }
  } catch (const UserError&) {
    return {};
  }
  return names;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("program_names(str config) -> (str[], str[], Tensor[], int[], int[])");
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("program_names", program_names);
}

}  // namespace conclave
