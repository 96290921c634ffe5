#include "data/batch_loader.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace conclave {

BatchLoader::BatchLoader(std::shared_ptr<const Blend> blend, BatchShape shape, int64_t first_sample, int64_t end_sample)
    : blend_(std::move(blend)), shape_(shape), first_sample_(first_sample), end_sample_(end_sample) {
  check_invariant(shape.micro_batch_size >= 1 && shape.rank >= 0 && shape.rank < shape.world_size && first_sample >= 0,
                  "micro-batch size {}, rank {} of {}, first sample {}", shape.micro_batch_size, shape.rank,
                  shape.world_size, first_sample);
  for (LoadedBatch& batch : buffers_) {
    const auto places = static_cast<size_t>(shape_.micro_batch_size * blend_->sequence_length());
    batch.inputs_BS.resize(places);
    batch.targets_BS.resize(places);
  }
  thread_ = std::jthread([this](const std::stop_token& stop) { read_ahead(stop); });
}

BatchLoader::~BatchLoader() = default;

const LoadedBatch& BatchLoader::next() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return ready_; });
  if (error_) std::rethrow_exception(error_);
  const LoadedBatch& batch = buffers_[filled_next_];
  filled_next_ = 1 - filled_next_;
  ++next_micro_step_;
  ready_ = false;
  changed_.notify_all();
  return batch;
}

void BatchLoader::read_ahead(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (changed_.wait(lock, stop, [&] { return !ready_; })) {
    LoadedBatch& batch = buffers_[filled_next_];
    const int64_t micro_step = next_micro_step_;
    lock.unlock();  // the caller computes with the other buffer, or waits for this one: it changes nothing before
                    // ready_
    std::exception_ptr error;
    try {
      fill(batch, micro_step);
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    error_ = error;
    ready_ = true;
    changed_.notify_all();
    if (error_) return;
  }
}

void BatchLoader::fill(LoadedBatch& batch, int64_t micro_step) const {
  const int64_t length = blend_->sequence_length();
  batch.first_sample = first_sample_ + (micro_step * shape_.world_size + shape_.rank) * shape_.micro_batch_size;
  batch.samples = std::clamp<int64_t>(end_sample_ - batch.first_sample, 0, shape_.micro_batch_size);
  std::vector<int64_t> sample(static_cast<size_t>(length + 1));
  std::vector<uint8_t> trained(static_cast<size_t>(length));
  batch.source_B.clear();
  batch.document_ends.clear();
  for (int64_t b = 0; b < batch.samples; ++b) {
    const Blend::Place place = blend_->at(batch.first_sample + b);
    const SampleStream& stream = blend_->stream(place.source);
    stream.read(place.sample, sample);
    std::copy_n(sample.begin(), length, batch.inputs_BS.begin() + b * length);
    int64_t* targets = batch.targets_BS.data() + b * length;
    std::copy_n(sample.begin() + 1, length, targets);
    if (!blend_->is_single()) batch.source_B.push_back(place.source);
    if (stream.packing() == Packing::apart)
      for (const int64_t end : stream.document_ends(place.sample)) batch.document_ends.push_back(b * length + end);
    if (stream.trains_on_all_targets()) continue;
    stream.read_trained(place.sample, trained);
    for (int64_t s = 0; s < length; ++s)
      if (trained[static_cast<size_t>(s)] == 0) targets[s] = LoadedBatch::ignored_target;
  }
  std::fill(batch.inputs_BS.begin() + batch.samples * length, batch.inputs_BS.end(), 0);
  std::fill(batch.targets_BS.begin() + batch.samples * length, batch.targets_BS.end(), LoadedBatch::ignored_target);
}

}  // namespace conclave
