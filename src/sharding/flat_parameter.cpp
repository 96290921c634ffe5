#include "sharding/flat_parameter.h"

#include "base/error.h"
#include "base/random.h"
#include "kernels/values.h"
#include "memory/memory_category.h"

namespace conclave {
namespace {

// The elements from `begin` on.
void draw(std::span<float> out, const ParameterDeclaration& parameter, uint64_t seed, int64_t begin) {
  const uint64_t stream = random_stream(parameter.name), first = static_cast<uint64_t>(begin);
  if (parameter.init_bound > 0.0f)
    fill_uniform(out, seed, stream, first, -parameter.init_bound, parameter.init_bound);
  else
    fill_normal(out, seed, stream, first, parameter.init_mean, parameter.init_std);
}

}  // namespace

FlatParameter::FlatParameter(std::vector<ParameterDeclaration> parameters, int expert_index, int expert_degree,
                             Communicator& shard, Communicator& replica, FlatParameterOptions options)
    : parameters_(std::move(parameters)),
      layout_(parameters_, expert_index, expert_degree, shard.size()),
      shard_(shard),
      replica_(replica),
      options_(std::move(options)) {}

void FlatParameter::allocate_parameters() {
  MemoryScope scope(MemoryCategory::parameters);
  parameter_shard = at::zeros({layout_.shard_numel()}, at::device(options_.device).dtype(at::kFloat));
}

void FlatParameter::allocate_training_state() {
  if (is_frozen()) return;
  const auto options = at::device(options_.device).dtype(at::kFloat);
  {
    MemoryScope scope(MemoryCategory::moments);
    for (size_t i = 0; i < options_.optimizer_state.size(); ++i)
      optimizer_state.push_back(at::zeros({layout_.shard_numel()}, options));
  }
  MemoryScope scope(MemoryCategory::gradients);
  gradient_shard = at::zeros({layout_.shard_numel()}, options);
}

void FlatParameter::initialize(uint64_t seed) {
  for (const FlatLayout::Slice& slice : layout_.slices(shard_.rank())) initialize(slice, seed);
}

void FlatParameter::initialize_adapters(uint64_t seed) {
  for (const FlatLayout::Slice& slice : layout_.slices(shard_.rank()))
    if (parameters_[slice.parameter].of_adapter) initialize(slice, seed);
}

void FlatParameter::initialize(const FlatLayout::Slice& slice, uint64_t seed) {
  constexpr int64_t block = int64_t{1} << 20;  // elements staged on the host when the shard is on a device
  const ParameterDeclaration& parameter = parameters_[slice.parameter];
  at::Tensor target = parameter_shard.narrow(0, slice.shard_offset, slice.numel);
  if (parameter.init_std == 0.0f && parameter.init_bound == 0.0f) {
    target.fill_(parameter.init_mean);
    return;
  }
  if (target.is_cpu()) {
    draw({target.data_ptr<float>(), static_cast<size_t>(slice.numel)}, parameter, seed, slice.begin);
    return;
  }
  for (int64_t begin = 0; begin < slice.numel; begin += block) {
    const int64_t count = std::min(block, slice.numel - begin);
    at::Tensor host = at::empty({count}, at::kFloat);
    draw({host.data_ptr<float>(), static_cast<size_t>(count)}, parameter, seed, slice.begin + begin);
    target.narrow(0, begin, count).copy_(host);
  }
}

std::vector<at::Tensor> FlatParameter::views(const at::Tensor& flat) const {
  std::vector<at::Tensor> views;
  for (const FlatLayout::Placement& placement : layout_.placements())
    views.push_back(flat.narrow(0, placement.offset, placement.numel).view(placement.shape));
  return views;
}

void FlatParameter::begin_unshard() {
  if (state_ != ParameterState::sharded) return;
  if (shard_is_whole() && (options_.compute_dtype == at::kFloat || options_.readers_round)) {
    unsharded_ = parameter_shard;
  } else {
    MemoryScope scope(MemoryCategory::unsharded_parameters);
    unsharded_ = at::empty({layout_.numel()}, at::device(options_.device).dtype(options_.compute_dtype));
    // The own part is cast (or copied) into place; the gather fills the others.
    at::Tensor own = unsharded_.narrow(0, shard_.rank() * layout_.shard_numel(), layout_.shard_numel());
    copy_values(own, parameter_shard);
    if (!shard_is_whole()) gather_ = shard_.all_gather(unsharded_, own);
  }
  state_ = ParameterState::gathering;
}

void FlatParameter::finish_unshard() {
  if (state_ == ParameterState::unsharded) return;
  check_invariant(state_ == ParameterState::gathering, "a unit is waited for that was never gathered ({})",
                  parameters_.front().name);
  gather_.wait();
  weights_ = views(unsharded_);
  state_ = ParameterState::unsharded;
}

void FlatParameter::reshard() {
  if (state_ == ParameterState::gathering) finish_unshard();
  weights_.clear();
  unsharded_.reset();
  state_ = ParameterState::sharded;
}

const std::vector<at::Tensor>& FlatParameter::weights() const {
  check_invariant(state_ == ParameterState::unsharded, "weights of {} are read while they are not unsharded",
                  parameters_.front().name);
  return weights_;
}

std::vector<Gradient> FlatParameter::gradients() {
  if (is_frozen()) return std::vector<Gradient>(parameters_.size());
  check_invariant(!reducing_, "gradients of {} are asked for while they are being reduced", parameters_.front().name);
  if (!gradient_.defined()) {
    if (shard_is_whole()) {
      gradient_ = gradient_shard;
      gradient_written_ = shard_gradient_valid_;
    } else {
      MemoryScope scope(MemoryCategory::unsharded_gradients);
      gradient_ = at::empty({layout_.numel()}, at::device(options_.device).dtype(at::kFloat));
      gradient_written_ = false;
      int64_t end = 0;  // zero the padding before each placement, then behind the last
      for (const FlatLayout::Placement& placement : layout_.placements()) {
        if (placement.offset > end) gradient_.narrow(0, end, placement.offset - end).zero_();
        end = placement.offset + placement.numel;
      }
      if (layout_.numel() > end) gradient_.narrow(0, end, layout_.numel() - end).zero_();
    }
  }
  std::vector<Gradient> gradients;
  for (at::Tensor& view : views(gradient_)) gradients.push_back({std::move(view), gradient_written_});
  gradient_written_ = true;
  return gradients;
}

void FlatParameter::begin_reduce(bool first, bool last) {
  if (is_frozen()) return;
  check_invariant(gradient_.defined(), "gradients of {} are reduced that were never computed",
                  parameters_.front().name);
  first_ = first;
  last_ = last;
  reducing_ = true;
  shard_gradient_valid_ = !last;
  if (shard_is_whole()) {
    gradient_.reset();
    if (last_) reduce_ = replica_.size() > 1 ? replica_.all_reduce(gradient_shard) : Pending();  // nothing else to sum
    return;
  }
  MemoryScope scope(MemoryCategory::unsharded_gradients);
  reduce_input_ = options_.reduce_dtype == at::kFloat ? gradient_ : gradient_.to(options_.reduce_dtype);
  gradient_.reset();
  const bool in_place = first_ && options_.reduce_dtype == at::kFloat;
  reduce_output_ = in_place ? gradient_shard : at::empty({layout_.shard_numel()}, reduce_input_.options());
  reduce_ = shard_.reduce_scatter(reduce_output_, reduce_input_);
}

void FlatParameter::finish_reduce() {
  if (!reducing_) return;
  reduce_.wait();
  if (!shard_is_whole()) {
    if (!reduce_output_.is_same(gradient_shard)) {
      if (first_)
        copy_values(gradient_shard, reduce_output_);
      else
        add_values(gradient_shard, reduce_output_);
    }
    reduce_input_.reset();
    reduce_output_.reset();
    if (last_ && replica_.size() > 1) replica_sum_ = replica_.all_reduce(gradient_shard);
  }
  reducing_ = false;
}

}  // namespace conclave
