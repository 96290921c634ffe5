// One outcome for all ranks of what each of them tries alone: no rank goes on, and none hangs, because another one
// failed.
#pragma once

#include <functional>

#include "comm/communicator.h"

namespace conclave {

// Runs `work` on every rank, then agrees. If it failed anywhere it throws everywhere, the kind of error of the lowest
// rank that failed (DamagedCheckpoint, another UserError, InvariantError, else std::runtime_error): that rank, and
// those that failed in the same kind, throw their own exception, the others its message, prefixed with that rank.
// `work` must not communicate through `ranks` unless all ranks do so alike. PeerLostError passes at once: there is
// nobody left to agree with. `ranks` must take CPU tensors (see HostTensors).
void together(Communicator& ranks, const std::function<void()>& work);

}  // namespace conclave
