#include "checkpoint/together.h"

#include <ATen/ATen.h>

#include <exception>
#include <stdexcept>
#include <string>

#include "checkpoint/damaged_checkpoint.h"
#include "checkpoint/rank_texts.h"

namespace conclave {
namespace {

enum Kind : int64_t { runtime_failure, user_failure, damage, invariant_failure };

struct Failure {
  Kind kind = runtime_failure;
  std::string message;
};

Failure describe(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const DamagedCheckpoint& error) {
    return {damage, error.what()};
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
  const at::Tensor kind = at::full({1}, static_cast<int64_t>(failure.kind), at::kLong);
  ranks.broadcast(kind, source).wait();
  return {static_cast<Kind>(kind.item<int64_t>()), broadcast_text(ranks, source, failure.message)};
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
  const auto mark = verdict.item<int64_t>();
  if (mark == 0) return;

  const int failed = ranks.size() - static_cast<int>(mark);
  const Failure of_own = own ? describe(own) : Failure{};
  const Failure failure = share(ranks, failed, of_own);
  if (own && of_own.kind == failure.kind) std::rethrow_exception(own);
  const std::string message = fmt::format("rank {}: {}", failed, failure.message);
  if (failure.kind == damage) throw DamagedCheckpoint(message);
  if (failure.kind == user_failure) throw UserError(message);
  if (failure.kind == invariant_failure) throw InvariantError(message);
  throw std::runtime_error(message);
}

}  // namespace conclave
