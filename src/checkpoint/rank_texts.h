// Texts that ranks tell each other. `ranks` must take CPU tensors (see HostTensors).
#pragma once

#include <string>
#include <vector>

#include "comm/communicator.h"

namespace conclave {

// Every rank's text, on every rank, in rank order.
std::vector<std::string> gather_texts(Communicator& ranks, const std::string& own);

// Rank `source`'s text, on every rank; the other ranks' own do not count.
std::string broadcast_text(Communicator& ranks, int source, const std::string& own);

}  // namespace conclave
