// torch.ops.conclave.sinkhorn_choice: the experts that tokens choose when the demand is made even over all ranks.
#include <ATen/ATen.h>
#include <torch/library.h>

#include "moe/selection_settings.h"
#include "operators/plugin_kernels.h"
#include "operators/process_group_communicator.h"

namespace conclave {
namespace {

// logits [T,E] -> expert_of_choice [T,top_k] int64. Collective over the group, also with no token. No gradient: choices
// are constants.
// NOLINTNEXTLINE(performance-unnecessary-value-param): PyTorch hands strings by value
at::Tensor sinkhorn_choice(const at::Tensor& logits, int64_t top_k, std::string group) {
  const OperatorDevice device(logits);
  const auto world = communicator_of("world", group, logits.device());
  const auto selection = make_selection({.rule = LoadBalancing::sinkhorn}, {.top_k = top_k}, /*layers=*/1,
                                        logits.size(1), *world, logits.device());
  return selection->route_in_training(0, logits.detach().contiguous(), {}).expert_of_choice_TK.to(at::kLong);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("sinkhorn_choice(Tensor logits, int top_k, str group) -> Tensor");
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("sinkhorn_choice", sinkhorn_choice);
}

}  // namespace conclave
