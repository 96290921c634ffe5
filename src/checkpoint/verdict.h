// One outcome for all ranks of what each of them tries alone: no rank goes on, and none hangs, because another one
// failed.
#pragma once

#include <functional>

#include "comm/communicator.h"

namespace conclave {

// Runs `work` on every rank, then agrees. If it failed anywhere it throws everywhere: a rank that failed throws its own
// exception, the others the message of the lowest rank that failed, prefixed with that rank, as the same kind of error
// (UserError, InvariantError, else std::runtime_error). `work` must not communicate through `ranks` unless all ranks do
// so alike. PeerLostError passes at once: there is nobody left to agree with. `ranks` must take CPU tensors (see
// HostTensors).
void together(Communicator& ranks, const std::function<void()>& work);

}  // namespace conclave
