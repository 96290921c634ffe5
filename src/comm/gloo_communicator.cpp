#include "comm/gloo_communicator.h"

#include <cstring>
#include <exception>

#include "comm/rank_order.h"
#include "comm/shapes.h"
#include "mesh/collective_bytes.h"

namespace conclave {
namespace {

char* bytes_of(const at::Tensor& tensor) {
  return static_cast<char*>(tensor.data_ptr());
}

void copy_bytes(char* to, const char* from, int64_t bytes) {
  if (to != from && bytes > 0) std::memcpy(to, from, bytes);
}

// For what arrives and is summed into place. Large blocks are used again (memory/block_pool.h).
at::Tensor staging(int64_t bytes) {
  return at::empty({bytes}, at::kByte);
}

std::vector<int64_t> offsets_of(const std::vector<int64_t>& splits, int64_t bytes_per_row) {
  std::vector<int64_t> offsets{0};
  for (int64_t rows : splits) offsets.push_back(offsets.back() + rows * bytes_per_row);
  return offsets;
}

// The ranks' parts in rank order, where this rank's own lies apart and the others' one after the other in `received`.
std::vector<const void*> parts_in_order(int rank, int size, const void* own, char* received, int64_t part_bytes) {
  std::vector<const void*> parts;
  parts.reserve(size);
  for (int source = 0; source < size; ++source)
    parts.push_back(source == rank ? own : received + part_bytes * (source < rank ? source : source - 1));
  return parts;
}

}  // namespace

GlooCommunicator::GlooCommunicator(std::string axis, int rank, int size, std::shared_ptr<Connection> connection)
    : Communicator(std::move(axis), rank, size), connection_(std::move(connection)) {}

GlooCommunicator::~GlooCommunicator() {
  // The background thread may wait for ranks that wait for this one: an exception that takes this rank away must reach
  // them first.
  if (background_.is_busy() && std::uncaught_exceptions() > 0) connection_->stop();
}

std::shared_ptr<Exchange> GlooCommunicator::begin(const Operation& operation, int phase,
                                                  std::vector<at::Tensor> tensors) const {
  return std::make_shared<Exchange>(connection_, operation, phase, std::move(tensors));
}

std::vector<int> GlooCommunicator::peers() const {
  std::vector<int> peers;
  for (int step = 1; step < size(); ++step) peers.push_back((rank() + step) % size());
  return peers;
}

Pending GlooCommunicator::all_gather(at::Tensor output, at::Tensor input) {
  check_parts("all_gather", output, input, size());
  const int64_t bytes = input.nbytes();
  const auto exchange = begin(call("all_gather"), 0, {output, input});
  for (int peer : peers()) exchange->receive(bytes_of(output) + bytes * peer, bytes, peer);
  for (int peer : peers()) exchange->send(bytes_of(input), bytes, peer);
  copy_bytes(bytes_of(output) + bytes * rank(), bytes_of(input), bytes);
  return Pending([exchange] { exchange->wait(); });
}

Pending GlooCommunicator::reduce_scatter(at::Tensor output, at::Tensor input) {
  check_parts("reduce_scatter", input, output, size());
  const int64_t bytes = output.nbytes();
  const at::Tensor received = staging(bytes * (size() - 1));
  const auto exchange = begin(call("reduce_scatter"), 0, {input, received});
  for (int peer : peers())
    exchange->receive(bytes_of(received) + bytes * (peer < rank() ? peer : peer - 1), bytes, peer);
  for (int peer : peers()) exchange->send(bytes_of(input) + bytes * peer, bytes, peer);
  return Pending([exchange, output, input, received, bytes, rank = rank(), size = size()] {
    exchange->wait();
    const auto parts = parts_in_order(rank, size, bytes_of(input) + bytes * rank, bytes_of(received), bytes);
    reduce_in_order(output.scalar_type(), output.data_ptr(), parts, output.numel(), Reduction::sum, Threads::all);
  });
}

Pending GlooCommunicator::all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                                     std::vector<int64_t> input_splits) {
  check_splits(output, input, output_splits, input_splits, rank(), size());
  const auto to = offsets_of(output_splits, row_bytes(output));
  const auto from = offsets_of(input_splits, row_bytes(input));
  const auto exchange = begin(call("all_to_all"), 0, {output, input});
  for (int peer : peers()) exchange->receive(bytes_of(output) + to[peer], to[peer + 1] - to[peer], peer);
  for (int peer : peers()) exchange->send(bytes_of(input) + from[peer], from[peer + 1] - from[peer], peer);
  copy_bytes(bytes_of(output) + to[rank()], bytes_of(input) + from[rank()], from[rank() + 1] - from[rank()]);
  return Pending([exchange] { exchange->wait(); });
}

Pending GlooCommunicator::all_reduce(at::Tensor tensor, Reduction reduction) {
  check_whole("all_reduce", tensor);
  return conclave::all_reduce_in_one_go(tensor.nbytes(), size()) ? all_reduce_in_one_go(tensor, reduction)
                                                                 : all_reduce_in_parts(tensor, reduction);
}

Pending GlooCommunicator::all_reduce_in_one_go(at::Tensor tensor, Reduction reduction) {
  const int64_t bytes = tensor.nbytes();
  const at::Tensor received = staging(bytes * (size() - 1));
  const auto exchange = begin(call("all_reduce"), 0, {tensor, received});
  for (int peer : peers())
    exchange->receive(bytes_of(received) + bytes * (peer < rank() ? peer : peer - 1), bytes, peer);
  for (int peer : peers()) exchange->send(bytes_of(tensor), bytes, peer);
  return Pending([exchange, tensor, received, bytes, reduction, rank = rank(), size = size()] {
    exchange->wait();
    const auto parts = parts_in_order(rank, size, bytes_of(tensor), bytes_of(received), bytes);
    reduce_in_order(tensor.scalar_type(), tensor.data_ptr(), parts, tensor.numel(), reduction, Threads::all);
  });
}

// The second exchange follows in the background, so that ranks that wait early do not depend on when others wait.
Pending GlooCommunicator::all_reduce_in_parts(at::Tensor tensor, Reduction reduction) {
  const int64_t item = tensor.element_size();
  const auto begin_of = [count = tensor.numel(), size = size(), item](int part) {
    return item * part_begin(count, part, size);
  };
  const int64_t own_begin = begin_of(rank()), own_bytes = begin_of(rank() + 1) - own_begin;
  const at::Tensor received = staging(own_bytes * (size() - 1));
  const Operation operation = call("all_reduce");
  const auto scatter = begin(operation, 0, {tensor, received});
  for (int peer : peers())
    scatter->receive(bytes_of(received) + own_bytes * (peer < rank() ? peer : peer - 1), own_bytes, peer);
  for (int peer : peers()) scatter->send(bytes_of(tensor) + begin_of(peer), begin_of(peer + 1) - begin_of(peer), peer);
  auto done = background_.run([=, this] {
    scatter->wait();
    const auto parts = parts_in_order(rank(), size(), bytes_of(tensor) + own_begin, bytes_of(received), own_bytes);
    reduce_in_order(tensor.scalar_type(), bytes_of(tensor) + own_begin, parts, own_bytes / item, reduction,
                    Threads::one);
    const auto gather = begin(operation, 1, {tensor});
    for (int peer : peers())
      gather->receive(bytes_of(tensor) + begin_of(peer), begin_of(peer + 1) - begin_of(peer), peer);
    for (int peer : peers()) gather->send(bytes_of(tensor) + own_begin, own_bytes, peer);
    gather->wait();
  });
  return Pending([done = std::make_shared<std::future<void>>(std::move(done))] { done->get(); });
}

Pending GlooCommunicator::broadcast(at::Tensor tensor, int root) {
  check_whole("broadcast", tensor);
  check_root(root, size());
  const int64_t bytes = tensor.nbytes();
  const auto exchange = begin(call("broadcast"), 0, {tensor});
  if (rank() != root) {
    exchange->receive(bytes_of(tensor), bytes, root);
  } else {
    for (int peer : peers()) exchange->send(bytes_of(tensor), bytes, peer);
  }
  return Pending([exchange] { exchange->wait(); });
}

void GlooCommunicator::barrier() {
  static const char nothing = 0;
  std::vector<char> received(size());
  const auto exchange = begin(call("barrier"), 0, {});
  for (int peer : peers()) exchange->receive(&received[peer], 1, peer);
  for (int peer : peers()) exchange->send(&nothing, 1, peer);
  exchange->wait();
}

}  // namespace conclave
