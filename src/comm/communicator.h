// Collectives over the ranks of one axis. Every call is asynchronous and returns a Pending to wait for; ranks must
// issue the calls of one communicator in the same order. Tensors are contiguous, and stay untouched by the caller until
// wait() returns. A call of a group of one rank copies and is ready.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace conclave {

// A collective in flight. Move-only; wait() returns when the output may be read (on CUDA: when the current stream may),
// and throws PeerLostError when another rank is gone or hangs. A Pending that was never waited for waits in its
// destructor and reports, but does not throw.
class Pending {
 public:
  Pending() = default;  // ready
  explicit Pending(std::function<void()> wait) : wait_(std::move(wait)) {}
  Pending(Pending&& other) noexcept : wait_(std::exchange(other.wait_, nullptr)) {}
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();

  void wait();
  bool is_ready() const { return wait_ == nullptr; }  // nothing left to wait for

 private:
  std::function<void()> wait_;
};

enum class Reduction { sum, max };

class Communicator {
 public:
  virtual ~Communicator() = default;

  int rank() const { return rank_; }  // place in this group, 0-based
  int size() const { return size_; }
  const std::string& name() const { return name_; }  // the axis, as users know it: "shard", "expert", ...

  // output [size * n] = every rank's input [n], in rank order. `input` may be the rank's own part of `output`, and is
  // then not copied.
  virtual Pending all_gather(at::Tensor output, at::Tensor input) = 0;
  // output [n] = sum over ranks, in rank order, of their input [size * n]'s part for this rank. Sums in the tensors'
  // dtype.
  virtual Pending reduce_scatter(at::Tensor output, at::Tensor input) = 0;
  // Rows (dim 0) of `input` go to the ranks by `input_splits`, rows of `output` come from them by `output_splits`; zero
  // rows are ordinary.
  virtual Pending all_to_all(at::Tensor output, at::Tensor input, std::vector<int64_t> output_splits,
                             std::vector<int64_t> input_splits) = 0;
  // In place; the same bits on every rank, whatever the timing.
  virtual Pending all_reduce(at::Tensor tensor, Reduction reduction = Reduction::sum) = 0;
  virtual Pending broadcast(at::Tensor tensor, int root) = 0;
  virtual void barrier() = 0;

 protected:
  Communicator(std::string name, int rank, int size) : name_(std::move(name)), rank_(rank), size_(size) {}

 private:
  std::string name_;
  int rank_;
  int size_;
};

}  // namespace conclave
