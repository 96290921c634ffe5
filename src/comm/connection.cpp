#include "comm/connection.h"

#include <atomic>

#include "base/error.h"

namespace conclave {

Operation Connection::call(const char* name) const {
  return watchdog ? watchdog->call(*calls, name) : Operation{calls->key, name, ++std::atomic_ref(calls->number)};
}

void Connection::fail(const Failure& failure) const {
  if (watchdog) watchdog->fail(failure);
  const int self = calls->ranks[place];
  const std::string call = failure.operation ? failure.operation->text() : "a call";
  if (failure.timed_out)
    throw PeerLostError(fmt::format("rank {} did not come to {} within {:.0f} s; this is rank {}", failure.peer, call,
                                    failure.waited_seconds, self),
                        {failure.peer});
  throw PeerLostError(
      fmt::format("rank {} is lost: {}; this rank ({}) was in {}", failure.peer, failure.error, self, call),
      {failure.peer});
}

void Connection::stop() const noexcept {
  if (watchdog) watchdog->stop("an error ended it; its own output tells which");
}

}  // namespace conclave
