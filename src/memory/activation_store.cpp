#include "memory/activation_store.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "base/error.h"
#include "memory/memory_category.h"

namespace conclave {

ActivationStore::ActivationStore(std::unique_ptr<OffloadMedium> medium, int64_t layers, int64_t horizon,
                                 StepClock& clock)
    : medium_(std::move(medium)),
      entries_(static_cast<size_t>(layers)),
      horizon_(horizon),
      offloaded_(std::max<int64_t>(layers - horizon, 0)),
      clock_(clock) {}

void ActivationStore::reserve(int64_t bytes) {
  if (bytes <= reserved_bytes_) return;
  medium_->reserve(offloaded_, bytes);
  reserved_bytes_ = bytes;
}

void ActivationStore::count_one_more() {
  ++on_device_;
  most_on_device_ = std::max(most_on_device_, on_device_);
}

void ActivationStore::drop_taken() {
  if (one_is_taken_) --on_device_;
  one_is_taken_ = false;
}

void ActivationStore::finish_copy(Entry& entry) {
  const ClockScope scope(clock_, Phase::offload);
  if (const OffloadMedium::Copy copy = std::exchange(entry.copy, nullptr)) copy();
}

void ActivationStore::put(int64_t layer, at::Tensor input_TH) {
  if (layer == 0) {
    drop_taken();
    check_invariant(on_device_ == 0, "a micro-step begins with {} inputs of the one before", on_device_);
    next_put_ = oldest_leaving_ = 0;
  }
  check_invariant(layer == next_put_, "the input of layer {} is put before that of layer {}", layer, next_put_);
  ++next_put_;
  while (on_device_ >= horizon_) {
    check_invariant(oldest_leaving_ < std::min(layer, offloaded_), "{} inputs are on the device and none leaves it",
                    on_device_);
    finish_copy(entries_[oldest_leaving_++]);
    --on_device_;
  }
  count_one_more();
  Entry& entry = entries_[layer];
  if (layer >= offloaded_) {
    entry.input_TH = std::move(input_TH);
    return;
  }
  entry.shape = input_TH.sizes().vec();
  entry.options = input_TH.options();
  entry.copy = medium_->write(layer, std::move(input_TH));
}

void ActivationStore::start_return(int64_t layer) {
  Entry& entry = entries_[layer];
  const MemoryScope scope(MemoryCategory::activations);
  entry.input_TH = at::empty(entry.shape, entry.options);
  entry.copy = medium_->read(layer, entry.input_TH);
}

at::Tensor ActivationStore::take(int64_t layer) {
  drop_taken();
  const auto layers = static_cast<int64_t>(entries_.size());
  check_invariant(next_put_ == layers, "the input of layer {} is taken after {} of {} were put", layer, next_put_,
                  layers);
  if (layer == layers - 1) next_return_ = offloaded_ - 1;
  for (; next_return_ >= 0 && on_device_ < horizon_; --next_return_) {
    count_one_more();
    start_return(next_return_);
  }
  Entry& entry = entries_[layer];
  finish_copy(entry);
  one_is_taken_ = true;
  check_invariant(entry.input_TH.defined(), "the input of layer {} is taken out of its turn", layer);
  return std::move(entry.input_TH);
}

}  // namespace conclave
