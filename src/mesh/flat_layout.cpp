#include "mesh/flat_layout.h"

#include <algorithm>

#include "base/error.h"

namespace conclave {
namespace {

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

FlatLayout::FlatLayout(const std::vector<ParameterDeclaration>& parameters, int expert_index, int expert_degree,
                       int degree)
    : degree_(degree) {
  for (const ParameterDeclaration& parameter : parameters) {
    Placement placement;
    placement.shape = parameter.shape;
    placement.numel = parameter.numel();
    if (parameter.kind == ParameterKind::expert) {
      check_invariant(parameter.shape.at(0) % expert_degree == 0,
                      "{} has {} experts, not a multiple of the expert degree {}", parameter.name, parameter.shape[0],
                      expert_degree);
      placement.shape[0] /= expert_degree;
      placement.numel /= expert_degree;
      placement.global_begin = placement.numel * expert_index;
    }
    placement.offset = numel_;
    numel_ += round_up(placement.numel, alignment);
    placements_.push_back(std::move(placement));
  }
  numel_ = round_up(numel_, alignment * degree);
}

std::vector<FlatLayout::Slice> FlatLayout::slices(int shard_index) const {
  const int64_t shard_begin = shard_index * shard_numel();
  const int64_t shard_end = shard_begin + shard_numel();
  std::vector<Slice> slices;
  for (size_t i = 0; i < placements_.size(); ++i) {
    const Placement& placement = placements_[i];
    const int64_t begin = std::max(shard_begin, placement.offset);
    const int64_t end = std::min(shard_end, placement.offset + placement.numel);
    if (begin < end)
      slices.push_back({i, placement.global_begin + begin - placement.offset, begin - shard_begin, end - begin});
  }
  return slices;
}

}  // namespace conclave
