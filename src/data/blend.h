// The samples of one or several sources in one order, each source with its share of them. Invariant: what a global
// sample index reads depends on nothing but the sources, their weights, S and the seed.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/blend_order.h"
#include "data/sample_stream.h"

namespace conclave {

struct BlendSource {
  std::string name;
  int64_t weight = 1;  // over the sum of all: its share of the samples
  std::shared_ptr<const SampleStream> stream;
};

class Blend {
 public:
  // At least one source, all of one sequence length.
  explicit Blend(std::vector<BlendSource> sources);
  // One source, whose samples follow one another.
  explicit Blend(std::shared_ptr<const SampleStream> stream);

  const std::vector<BlendSource>& sources() const { return sources_; }
  const SampleStream& stream(int64_t source) const { return *sources_[static_cast<size_t>(source)].stream; }
  int64_t sequence_length() const { return sources_[0].stream->sequence_length(); }
  bool is_single() const { return sources_.size() == 1; }
  bool has_mask() const;

  using Place = BlendOrder::Place;
  Place at(int64_t global_sample) const { return order_.at(global_sample); }
  std::vector<int64_t> samples_before(int64_t global_sample) const { return order_.counts_before(global_sample); }

  // Of samples [first, first + count): the samples of each source, and its targets that are trained on.
  struct Content {
    std::vector<int64_t> samples;
    std::vector<int64_t> targets;
    int64_t all_targets() const;
  };
  Content content(int64_t first, int64_t count) const;

 private:
  std::vector<BlendSource> sources_;
  BlendOrder order_;
};

}  // namespace conclave
