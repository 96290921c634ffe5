#include "checkpoint/verdict.h"

#include <ATen/ATen.h>

#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>

#include "base/error.h"

namespace conclave {
namespace {

enum Kind : int64_t { runtime_failure, user_failure, invariant_failure };

struct Failure {
  Kind kind = runtime_failure;
  std::string message;
};

Failure describe(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const UserError& error) {
    return {user_failure, error.what()};
  } catch (const InvariantError& error) {
    return {invariant_failure, error.what()};
  } catch (const std::exception& error) {
    return {runtime_failure, error.what()};
  } catch (...) {
    return {runtime_failure, "unknown failure"};
  }
}

// Rank `source`'s failure, on every rank.
Failure share(Communicator& ranks, int source, Failure failure) {
  constexpr size_t longest = 4096;
  failure.message.resize(std::min(failure.message.size(), longest));
  const at::Tensor head =
      at::tensor({static_cast<int64_t>(failure.kind), static_cast<int64_t>(failure.message.size())}, at::kLong);
  ranks.broadcast(head, source).wait();
  const int64_t length = head[1].item<int64_t>();
  const at::Tensor text = at::zeros({length}, at::kByte);
  if (ranks.rank() == source) std::memcpy(text.data_ptr(), failure.message.data(), failure.message.size());
  if (length > 0) ranks.broadcast(text, source).wait();
  return {static_cast<Kind>(head[0].item<int64_t>()),
          std::string(static_cast<const char*>(text.data_ptr()), static_cast<size_t>(length))};
}

}  // namespace

void together(Communicator& ranks, const std::function<void()>& work) {
  std::exception_ptr own;
  try {
    work();
  } catch (const PeerLostError&) {
    throw;
  } catch (...) {
    own = std::current_exception();
  }
  // The maximum of (size - rank) over the ranks that failed names the lowest of them; 0: none failed.
  const at::Tensor verdict = at::full({1}, own ? ranks.size() - ranks.rank() : 0, at::kLong);
  ranks.all_reduce(verdict, Reduction::max).wait();
  const int64_t mark = verdict.item<int64_t>();
  if (mark == 0) return;

  const int failed = ranks.size() - static_cast<int>(mark);
  const Failure failure = share(ranks, failed, own ? describe(own) : Failure{});
  if (own) std::rethrow_exception(own);
  const std::string message = fmt::format("rank {}: {}", failed, failure.message);
  if (failure.kind == user_failure) throw UserError(message);
  if (failure.kind == invariant_failure) throw InvariantError(message);
  throw std::runtime_error(message);
}

}  // namespace conclave
