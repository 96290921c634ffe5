// Addresses of this host, asked of the kernel. Nothing is sent.
#pragma once

#include <string>

namespace conclave {

// The address of the interface that leads to the host. A host that cannot be resolved, or that no interface leads to,
// is a UserError that names MASTER_ADDR.
std::string source_address_towards(const std::string& host);

// Of the interface that leads to the world (the default route); empty where there is none.
std::string source_address_of_default_route();

bool is_loopback(const std::string& numeric_address);

// Whether somebody listens on the port.
bool accepts_connections(const std::string& host, int port);

// A TCP socket that listens on loopback alone; -1 where the port is taken.
int listen_on_loopback(const std::string& numeric_address, int port);

}  // namespace conclave
