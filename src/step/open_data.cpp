#include "step/open_data.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace conclave {
namespace {

std::shared_ptr<const SampleStream> open_set(const DataSet& set, const Job& job, int64_t vocab_size, Order order) {
  return std::make_shared<const SampleStream>(std::make_shared<const IndexedTokens>(set.prefix, vocab_size),
                                              job.data.sequence_length, static_cast<uint64_t>(job.run.seed), order,
                                              job.data.document_mask ? Packing::apart : Packing::joined);
}

}  // namespace

std::shared_ptr<const Blend> open_training(const Job& job, int64_t vocab_size) {
  const std::vector<DataSet>& sets = job.data.train.sets;
  std::vector<double> weights;
  for (const DataSet& set : sets) weights.push_back(set.weight);
  const std::vector<int64_t> whole = whole_weights(weights, "data.train");
  std::vector<BlendSource> sources;
  for (size_t s = 0; s < sets.size(); ++s)
    sources.push_back({sets[s].name, whole[s], open_set(sets[s], job, vocab_size, Order::shuffled)});
  return std::make_shared<const Blend>(std::move(sources));
}

std::vector<NamedSet> open_validation(const Job& job, int64_t vocab_size) {
  std::vector<NamedSet> opened;
  if (!job.data.validation) return opened;
  for (const DataSet& set : job.data.validation->sets) {
    auto stream = open_set(set, job, vocab_size, Order::in_order);
    const int64_t all = stream->samples_per_epoch();
    const int64_t samples = job.validation.samples > 0 ? std::min(job.validation.samples, all) : all;
    if (Blend(stream).content(0, samples).all_targets() == 0)
      user_error(
          "the first {} samples of data.validation {} have no token that the loss is of (its mask leaves out all{}).\n "
          "  "
          "  "
          "  Set validation.samples to 0 for the whole set, or give another one.",
          samples, set.prefix.string(), job.data.document_mask ? ", or data.document_mask does" : "");
    opened.push_back({set.name, std::move(stream)});
  }
  return opened;
}

}  // namespace conclave
