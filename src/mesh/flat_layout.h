// Where each parameter of one kind of one unit lies in a flat buffer, and which part of it a rank keeps. Pure
// arithmetic.
//
// A group's parameters stand one after the other, each starting at a multiple of `alignment` elements. Of an expert
// parameter only this rank's experts are there (dim 0 divided over the expert axis). The whole is padded to a multiple
// of degree x alignment and cut into `degree` equal shards.
#pragma once

#include <cstdint>
#include <vector>

#include "base/parameter_declaration.h"

namespace conclave {

class FlatLayout {
 public:
  static constexpr int64_t alignment = 16;  // elements: 64 bytes of fp32, a cache line

  struct Placement {
    std::vector<int64_t> shape;  // on this rank, unsharded: dim 0 of an expert parameter is the local experts
    int64_t offset = 0;          // in the flat buffer
    int64_t numel = 0;
    int64_t global_begin = 0;  // index of its first element in the flattened global parameter
  };

  // A maximal range of one parameter that lies in one shard.
  struct Slice {
    size_t parameter = 0;
    int64_t begin = 0;         // in the flattened global parameter
    int64_t shard_offset = 0;  // in the shard
    int64_t numel = 0;
  };

  FlatLayout() = default;
  // `parameters` are all of one kind. expert_index, expert_degree: 0, 1 for dense ones.
  FlatLayout(const std::vector<ParameterDeclaration>& parameters, int expert_index, int expert_degree, int degree);

  const std::vector<Placement>& placements() const { return placements_; }
  int64_t numel() const { return numel_; }  // of the flat buffer, padding included
  int64_t shard_numel() const { return numel_ / degree_; }
  std::vector<Slice> slices(int shard_index) const;

 private:
  std::vector<Placement> placements_;
  int64_t numel_ = 0;
  int degree_ = 1;
};

}  // namespace conclave
