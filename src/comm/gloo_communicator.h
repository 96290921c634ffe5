// Collectives between CPU ranks, built on Gloo's sends and receives: each rank's data goes straight to where it
// belongs, without the temporaries and the doubled traffic of Gloo's own all-gather and reduce-scatter. Reductions are
// local and in rank order, hence reproducible.
//
// Staging memory: reduce_scatter and all_reduce in one go take (size - 1) * n elements while in flight,
// all_reduce in parts (size - 1) / size * n.
#pragma once

#include "base/background_thread.h"
#include "comm/communicator.h"
#include "comm/exchange.h"

namespace conclave {

class GlooCommunicator final : public Communicator {
 public:
  GlooCommunicator(std::string axis, int rank, int size, std::shared_ptr<Connection> connection);
  ~GlooCommunicator() override;

  Pending all_gather(at::Tensor output, at::Tensor input) override;
  Pending reduce_scatter(at::Tensor output, at::Tensor input) override;
  Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                     std::vector<int64_t> input_splits) override;
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override;
  Pending broadcast(at::Tensor tensor, int root) override;
  void barrier() override;

 private:
  std::shared_ptr<Exchange> begin(const Operation& operation, int phase, std::vector<at::Tensor> tensors) const;
  Operation call(const char* name) { return connection_->call(name); }
  Pending all_reduce_in_one_go(at::Tensor tensor, Reduction reduction);
  Pending all_reduce_in_parts(at::Tensor tensor, Reduction reduction);
  // The group's other places, beginning behind this rank's own, so that not all ranks send to the same one first.
  std::vector<int> peers() const;

  std::shared_ptr<Connection> connection_;
  BackgroundThread background_;  // second halves of all_reduce
};

}  // namespace conclave
