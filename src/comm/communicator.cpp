#include "comm/communicator.h"

#include <exception>

#include "base/log.h"

namespace conclave {

void Pending::wait() {
  if (const auto wait = std::exchange(wait_, nullptr)) wait();
}

Pending& Pending::operator=(Pending&& other) noexcept {
  if (this != &other) {
    Pending old = std::move(*this);  // waits at the end of this scope
    wait_ = std::exchange(other.wait_, nullptr);
  }
  return *this;
}

Pending::~Pending() {
  if (!wait_ || std::uncaught_exceptions() > 0) return;
  try {
    wait();
  } catch (const std::exception& error) {
    spdlog::error("a collective that nobody waited for failed: {}", error.what());
  }
}

}  // namespace conclave
