// Where the ranks of a job first meet: a key-value store. Those of one host meet over a Unix socket that rank 0 serves,
// others over the network, in c10d's store, served by torchrun's agent or by rank 0.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <string>

#include "comm/process.h"

namespace conclave {

// Connects to the store of the job, whose keys are set apart by restart count and world size. Null for a world of one.
// Waits up to `timeout` for the server, then throws PeerLostError. A port already in use is a UserError on rank 0. A
// client serves one thread at a time: a thread of its own needs a clone(). Over the network, values carry a keyed hash
// where CONCLAVE_SECRET_FILE is set.
c10::intrusive_ptr<c10d::Store> connect_store(const Process& process, std::chrono::milliseconds timeout);

// "the store at host:port, served by ...": for messages.
std::string describe_store(const Process& process);

// The address of this host on which the other ranks can reach it: loopback when they are all on it, else that of the
// interface which leads to `master_address`, or, where that is this host's own loopback, to the world. A host without
// such an interface is a UserError.
std::string address_for_peers(const Process& process);

}  // namespace conclave
