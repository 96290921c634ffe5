// Collectives between CUDA ranks by NCCL. wait() makes the current stream wait, not the host. The order of sums is
// NCCL's: the same on every run of one layout on one machine, and the same bits on every rank. Calls return while the
// GPU still works; one that is overdue is found by the watchdog, which names the culprit and, as the host may be stuck
// in the driver, ends the process. One thread alone calls collectives: NCCL_LAUNCH_ORDER_IMPLICIT (plugin.cpp) takes
// its order for every rank's.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <deque>
#include <mutex>

#include "comm/communicator.h"
#include "comm/watchdog.h"

namespace conclave {

class NcclCommunicator final : public Communicator {
 public:
  // `store` is the group's alone. The ranks connect on the first collective.
  NcclCommunicator(std::string axis, int rank, int size, c10::intrusive_ptr<c10d::Store> store,
                   std::shared_ptr<Watchdog> watchdog, std::shared_ptr<Watchdog::Calls> calls,
                   std::chrono::milliseconds timeout);
  ~NcclCommunicator() override;

  Pending all_gather(at::Tensor output, at::Tensor input) override;
  Pending reduce_scatter(at::Tensor output, at::Tensor input) override;
  Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                     std::vector<int64_t> input_splits) override;
  Pending all_reduce(at::Tensor tensor, Reduction reduction) override;
  Pending broadcast(at::Tensor tensor, int root) override;
  void barrier() override;

 private:
  struct InFlight {
    std::shared_ptr<c10d::ProcessGroupNCCL::WorkNCCL> work;  // a copy that holds no tensors
    Operation operation;
    std::chrono::steady_clock::time_point since;
  };
  Pending start(const char* name, const std::function<c10::intrusive_ptr<c10d::Work>()>& enqueue);
  std::optional<Failure> find_overdue();
  std::optional<Failure> let_go_of_ended();

  std::shared_ptr<Watchdog> watchdog_;
  std::shared_ptr<Watchdog::Calls> calls_;
  std::chrono::milliseconds timeout_;
  c10::DeviceIndex device_;
  std::mutex mutex_;
  std::deque<InFlight> in_flight_;  // in the order of the calls
  c10::intrusive_ptr<c10d::ProcessGroupNCCL> group_;
  std::shared_ptr<void> supervision_;
};

}  // namespace conclave
