#include "step/selection_bias.h"

#include <ATen/ATen.h>

#include "checkpoint/checkpoint_state.h"

namespace conclave {
namespace {

bool has_bias(const ParallelModel& model) {
  const MixtureConfig* mixture = model.config().mixture();
  return mixture != nullptr && mixture->selection_bias;
}

// f(slice, its elements of `bias` [L,E]) for this rank's parts of the parameters.
template <class F>
void for_each_part(ParallelModel& model, ParallelModel::Replicas replicas, const at::Tensor& bias_LE, const F& f) {
  const std::vector<int64_t> layers = model.config().mixture_layers();
  const std::vector<TensorSlice> slices = model.slices(kind_parameter, replicas);
  for (size_t mixture = 0; mixture < layers.size(); ++mixture) {
    const std::string name = model.declarations().at(static_cast<size_t>(layers[mixture]) + 1).name + ".selection_bias";
    for (const TensorSlice& slice : slices)
      if (slice.name == name)
        f(slice.data, bias_LE[static_cast<int64_t>(mixture)].narrow(0, slice.begin, slice.data.numel()));
  }
}

}  // namespace

void read_selection_bias(ParallelModel& model, ExpertSelection& selection) {
  if (!has_bias(model)) return;
  const ModelConfig& config = model.config();
  // Every element is one rank's alone: the sum is exact.
  at::Tensor bias_LE =
      at::zeros({config.mixtures(), config.experts()}, at::device(model.options().device).dtype(at::kFloat));
  for_each_part(model, ParallelModel::Replicas::once, bias_LE,
                [](const at::Tensor& part, const at::Tensor& of_bias) { of_bias.copy_(part); });
  model.axes().world().all_reduce(bias_LE).wait();
  selection.use_bias_of_model(bias_LE);
}

void write_selection_bias(ParallelModel& model, const ExpertSelection& selection) {
  if (!has_bias(model) || !selection.bias_LE().defined()) return;  // on paper nobody has read one
  for_each_part(model, ParallelModel::Replicas::all, selection.bias_LE(),
                [](const at::Tensor& part, const at::Tensor& of_bias) { part.copy_(of_bias); });
}

}  // namespace conclave
