// Counts what a rank sends: calls and bytes by axis and operation. The wrapped communicator does the work.
//
// Bytes are those of this rank's data handed to the transport for other ranks, without headers; n = elements, s = bytes
// of one, size = ranks:
//   all_gather      (size - 1) * n_input * s
//   reduce_scatter  (size - 1) * n_output * s
//   all_to_all      the input's rows for other ranks
//   all_reduce      in one go (size <= 2, or n * s <= 64 KiB):  (size - 1) * n * s
//                   in parts, where own = this rank's part, about n / size:  (n - own) * s + (size - 1) * own * s
//   broadcast       the root: (size - 1) * n * s; others: 0
//   barrier         0
// A group of one rank sends 0 bytes; its calls count. With NCCL the algorithm is NCCL's own and these are the bytes of
// the same collective done as above.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "comm/communicator.h"
#include "mesh/collective_bytes.h"

namespace conclave {

// What a rank has sent, shared by its communicators. May be used by several threads.
class TrafficCount {
 public:
  void add(const std::string& axis, const char* operation, int64_t bytes);
  TrafficByOperation snapshot() const;
  TrafficByOperation reset();  // a snapshot, after which all counts are zero

 private:
  mutable std::mutex mutex_;
  TrafficByOperation counts_;
};

class CountingCommunicator final : public Communicator {
 public:
  CountingCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<TrafficCount> count);

  Pending all_gather(at::Tensor output, at::Tensor input) override;
  Pending reduce_scatter(at::Tensor output, at::Tensor input) override;
  Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                     std::vector<int64_t> input_splits) override;
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override;
  Pending broadcast(at::Tensor tensor, int root) override;
  void barrier() override;

 private:
  std::unique_ptr<Communicator> inner_;
  std::shared_ptr<TrafficCount> count_;
};

}  // namespace conclave
