#include "cuda/nccl_communicator.h"

#include <c10/cuda/CUDAFunctions.h>

#include "base/error.h"
#include "base/log.h"
#include "base/seconds_since.h"
#include "comm/shapes.h"

namespace conclave {

using Clock = std::chrono::steady_clock;

NcclCommunicator::NcclCommunicator(std::string axis, int rank, int size, c10::intrusive_ptr<c10d::Store> store,
                                   std::shared_ptr<Watchdog> watchdog, std::shared_ptr<Watchdog::Calls> calls,
                                   std::chrono::milliseconds timeout)
    : Communicator(std::move(axis), rank, size),
      watchdog_(std::move(watchdog)),
      calls_(std::move(calls)),
      timeout_(timeout),
      device_(c10::cuda::current_device()) {
  // What a later layer waits for goes before the products that are queued already.
  auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
  options->timeout = 2 * timeout;  // our watchdog comes first, because it can name the culprit
  options->group_name = calls_->key;
  group_ = c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(store), rank, size, options);
  supervision_ = watchdog_->supervise([this] { return find_overdue(); });
}

NcclCommunicator::~NcclCommunicator() {
  supervision_.reset();
  try {
    // After an error collectives may be in flight: they are ended. c10d's destructor does the same after a warning, and
    // an exception there would end the process.
    group_->abort();
  } catch (const std::exception& error) {
    spdlog::warn("NCCL's communicator {} did not end well: {}", calls_->key, error.what());
  }
}

Pending NcclCommunicator::start(const char* name, const std::function<c10::intrusive_ptr<c10d::Work>()>& enqueue) {
  const Operation operation = watchdog_->call(*calls_, name);
  c10::intrusive_ptr<c10d::Work> work;
  try {
    // The first call connects the ranks, which nobody can end: after a verdict the watchdog ends the process.
    const Watchdog::Waiting waiting(*watchdog_, operation, [] {});
    work = enqueue();
  } catch (const std::exception& error) {
    watchdog_->fail({operation, -1, false, 0, error.what()});
  }
  const auto* nccl_work = dynamic_cast<c10d::ProcessGroupNCCL::WorkNCCL*>(work.get());
  check_invariant(nccl_work != nullptr, "{} of NCCL is not NCCL's", name);
  std::lock_guard lock(mutex_);
  let_go_of_ended();  // a failure is found again by the watchdog
  // What it sends and receives may be freed before it is found to have ended.
  in_flight_.push_back({std::make_shared<c10d::ProcessGroupNCCL::WorkNCCL>(*nccl_work), operation, Clock::now()});
  return Pending([this, work, operation] {
    try {
      const Watchdog::Waiting waiting(*watchdog_, operation, [] {});
      work->wait();
    } catch (const std::exception& error) {
      watchdog_->fail({operation, -1, false, 0, error.what()});
    }
  });
}

// mutex_ is held. The first one that failed stays, and is returned.
std::optional<Failure> NcclCommunicator::let_go_of_ended() {
  while (!in_flight_.empty()) {
    const InFlight& first = in_flight_.front();
    try {
      if (!first.work->isCompleted()) return {};
      if (const std::exception_ptr exception = first.work->exception()) std::rethrow_exception(exception);
    } catch (const std::exception& error) {
      return Failure{first.operation, -1, false, seconds_since(first.since), error.what()};
    }
    in_flight_.pop_front();
  }
  return {};
}

// Asked by the watchdog's thread.
std::optional<Failure> NcclCommunicator::find_overdue() {
  c10::cuda::set_device(device_);  // of this thread: else it would take memory on the first one
  std::lock_guard lock(mutex_);
  if (auto failure = let_go_of_ended()) return failure;
  if (in_flight_.empty()) return {};
  const double waited = seconds_since(in_flight_.front().since);
  if (waited < std::chrono::duration<double>(timeout_).count()) return {};
  return Failure{in_flight_.front().operation, -1, true, waited, "time-out"};
}

Pending NcclCommunicator::all_gather(at::Tensor output, at::Tensor input) {
  check_parts("all_gather", output, input, size());
  return start("all_gather", [&] { return group_->_allgather_base(output, input); });
}

Pending NcclCommunicator::reduce_scatter(at::Tensor output, at::Tensor input) {
  check_parts("reduce_scatter", input, output, size());
  return start("reduce_scatter", [&] { return group_->_reduce_scatter_base(output, input); });
}

Pending NcclCommunicator::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                                     std::vector<int64_t> input_splits) {
  check_splits(output, input, output_splits, input_splits, rank(), size());
  return start("all_to_all", [&] { return group_->alltoall_base(output, input, output_splits, input_splits); });
}

Pending NcclCommunicator::all_reduce(at::Tensor tensor, Reduction reduction) {
  check_whole("all_reduce", tensor);
  c10d::AllreduceOptions options;
  options.reduceOp = reduction == Reduction::sum ? c10d::ReduceOp::SUM : c10d::ReduceOp::MAX;
  return start("all_reduce", [&] {
    std::vector<at::Tensor> tensors{tensor};
    return group_->allreduce(tensors, options);
  });
}

Pending NcclCommunicator::broadcast(at::Tensor tensor, int root) {
  check_whole("broadcast", tensor);
  check_root(root, size());
  c10d::BroadcastOptions options;
  options.rootRank = root;
  return start("broadcast", [&] {
    std::vector<at::Tensor> tensors{tensor};
    return group_->broadcast(tensors, options);
  });
}

void NcclCommunicator::barrier() {
  c10d::BarrierOptions options;
  options.device_ids = {device_};  // else c10d takes one by the rank's number in the group
  start("barrier", [&] {
    return group_->barrier(options);
  }).wait();  // NCCL's barrier is the one call whose wait blocks the host
}

}  // namespace conclave
