#include "comm/communicator.h"
namespace conclave {
Pending& Pending::operator=(Pending&& other) noexcept {
  if (this != &other) {
    if (wait_) wait_();
    wait_ = std::exchange(other.wait_, nullptr);
  }
  return *this;
}
Pending::~Pending() {
  if (wait_) wait_();
}
void Pending::wait() {
  if (auto w = std::exchange(wait_, nullptr)) w();
}
}  // namespace conclave
