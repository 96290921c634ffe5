// A rank's micro-batches, one after the other, each read by a background thread while the one before it is computed
// with, so that reading never stalls a step. Row b of the n-th micro-batch is sample
//     first_sample + (n * world_size + rank) * micro_batch_size + b
// of the blend. So all layouts with the same product world_size * micro_batch_size see the same samples in the same
// micro-step, and the next sample after a step is all that another shape needs to go on.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <vector>

#include "data/blend.h"

namespace conclave {

struct BatchShape {
  int64_t micro_batch_size = 1;  // B, sequences of this rank
  int64_t world_size = 1;
  int64_t rank = 0;
};

struct LoadedBatch {
  static constexpr int64_t ignored_target = -100;  // the index that cross-entropy leaves out, as in PyTorch

  std::vector<int64_t> inputs_BS;   // [B * S], row by row
  std::vector<int64_t> targets_BS;  // [B * S]; ignored_target where a mask says so, and in rows without a sample
  std::vector<int64_t> source_B;    // of the rows that hold a sample: their source; empty: the blend has one
  // Rows behind the documents of the samples, which do not see each other; empty: each sample is one, or there is none.
  std::vector<int64_t> document_ends;
  int64_t first_sample = 0;  // global index of the sample of row 0
  int64_t samples = 0;       // rows that hold a sample: all B, or fewer (even none) at the end of the samples
};

class BatchLoader {
 public:
  static constexpr int64_t endless = std::numeric_limits<int64_t>::max();

  // Begins with the global sample `first_sample`, and starts to read it. `end_sample`: samples from this global
  // index on do not exist; rows that would hold one are filled with input 0 and ignored targets (a validation set that
  // the rows do not divide).
  BatchLoader(std::shared_ptr<const Blend> blend, BatchShape shape, int64_t first_sample = 0,
              int64_t end_sample = endless);
  // Stops the thread; waits for a read in flight.
  ~BatchLoader();
  BatchLoader(const BatchLoader&) = delete;
  BatchLoader& operator=(const BatchLoader&) = delete;

  // The next micro-batch, valid until the call after this one. Waits if it is still being read. What went wrong with
  // reading it (UserError for a token id outside the vocabulary) is thrown here, and again by each later call.
  const LoadedBatch& next();

 private:
  void read_ahead(const std::stop_token& stop);
  void fill(LoadedBatch& batch, int64_t micro_step) const;

  const std::shared_ptr<const Blend> blend_;
  const BatchShape shape_;
  const int64_t first_sample_;
  const int64_t end_sample_;

  // Two buffers: the caller holds buffers_[1 - filled_next_] while the thread fills buffers_[filled_next_].
  LoadedBatch buffers_[2];
  std::mutex mutex_;  // guards what follows
  std::condition_variable_any changed_;
  int filled_next_ = 0;
  bool ready_ = false;           // buffers_[filled_next_] is complete, or error_ is set
  std::exception_ptr error_;     // why it could not be filled
  int64_t next_micro_step_ = 0;  // counted since the beginning of this loader; the one to fill
  std::jthread thread_;          // last: started when all else is there, joined before any of it goes
};

}  // namespace conclave
