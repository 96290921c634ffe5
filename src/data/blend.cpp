#include "data/blend.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

std::vector<int64_t> weights_of(const std::vector<BlendSource>& sources) {
  std::vector<int64_t> weights;
  weights.reserve(sources.size());
  for (const BlendSource& source : sources) weights.push_back(source.weight);
  return weights;
}

}  // namespace

Blend::Blend(std::vector<BlendSource> sources) : sources_(std::move(sources)), order_(weights_of(sources_)) {
  for (const BlendSource& source : sources_)
    check_invariant(source.stream->sequence_length() == sequence_length(), "source {}: sequence length {}, not {}",
                    source.name, source.stream->sequence_length(), sequence_length());
}

Blend::Blend(std::shared_ptr<const SampleStream> stream)
    : Blend(std::vector<BlendSource>{{.name = "", .weight = 1, .stream = std::move(stream)}}) {}

bool Blend::has_mask() const {
  return std::any_of(sources_.begin(), sources_.end(),
                     [](const BlendSource& source) { return source.stream->has_mask(); });
}

int64_t Blend::Content::all_targets() const {
  return std::accumulate(targets.begin(), targets.end(), int64_t{0});
}

Blend::Content Blend::content(int64_t first, int64_t count) const {
  Content content{samples_before(first + count), {}};
  const std::vector<int64_t> before = samples_before(first);
  for (size_t s = 0; s < sources_.size(); ++s) {
    const SampleStream& stream = *sources_[s].stream;
    int64_t targets = (content.samples[s] - before[s]) * stream.sequence_length();
    if (!stream.trains_on_all_targets()) {
      targets = 0;
      for (int64_t sample = before[s]; sample < content.samples[s]; ++sample) targets += stream.targets(sample);
    }
    content.samples[s] -= before[s];
    content.targets.push_back(targets);
  }
  return content;
}

}  // namespace conclave
