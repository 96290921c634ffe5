// The inputs of recomputed layers between their forward and their backward: off the device, except those that are
// needed soon. Of the inputs that were put and not yet used up, at most `horizon` are on the device at any moment,
// those counted that are still on their way out or already on their way in. Inputs are put in ascending order of their
// layers and taken in descending order; the last `horizon` ones never leave. Copies run beside the computation; waiting
// for one is time in Phase::offload.
#pragma once

#include <memory>
#include <vector>

#include "base/step_clock.h"
#include "memory/offload_medium.h"

namespace conclave {

class ActivationStore {
 public:
  // `clock` outlives the store.
  ActivationStore(std::unique_ptr<OffloadMedium> medium, int64_t layers, int64_t horizon, StepClock& clock);

  // Room for inputs of up to `bytes`. Throws, as the medium does, when there is none. Between micro-steps.
  void reserve(int64_t bytes);

  // After the layer's forward. The store holds the input from now on; the caller must not.
  void put(int64_t layer, at::Tensor input_TH);
  // Before the layer's backward; the input taken before must be used up. Starts the return of the following ones.
  at::Tensor take(int64_t layer);

  // The most inputs that were on the device at once.
  int64_t most_on_device() const { return most_on_device_; }
  int64_t offloaded_layers() const { return offloaded_; }  // layers 0 .. this - 1 leave the device

 private:
  struct Entry {
    at::Tensor input_TH;         // kept here, or being filled
    std::vector<int64_t> shape;  // of an input that left
    at::TensorOptions options;
    OffloadMedium::Copy copy;  // under way: out or in
  };
  void count_one_more();
  void drop_taken();
  void finish_copy(Entry& entry);
  void start_return(int64_t layer);

  std::unique_ptr<OffloadMedium> medium_;
  std::vector<Entry> entries_;
  int64_t horizon_;
  int64_t offloaded_;
  StepClock& clock_;
  int64_t reserved_bytes_ = -1;

  int64_t on_device_ = 0;
  int64_t most_on_device_ = 0;
  bool one_is_taken_ = false;  // and counts until the next is taken
  int64_t next_put_ = 0;
  int64_t oldest_leaving_ = 0;  // of those that may still be on their way out
  int64_t next_return_ = 0;
};

}  // namespace conclave
