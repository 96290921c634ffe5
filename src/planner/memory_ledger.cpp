#include "planner/memory_ledger.h"

#include <algorithm>

namespace conclave {

std::string MemoryLedger::Moment::text() const {
  std::string text = phase;
  if (*unit != '\0') text += std::string(text.empty() ? "" : " ") + unit;
  if (*part != '\0') text += std::string(text.empty() ? "" : ", ") + part;
  return text;
}

MemoryLedger::Block& MemoryLedger::Block::operator=(Block&& other) noexcept {
  if (this == &other) return *this;
  free();
  ledger_ = std::exchange(other.ledger_, nullptr);
  category_ = other.category_;
  bytes_ = std::exchange(other.bytes_, 0);
  return *this;
}

void MemoryLedger::Block::free() {
  if (ledger_ == nullptr) return;
  ledger_->now_.total -= bytes_;
  ledger_->now_.of[static_cast<int>(category_)] -= bytes_;
  ledger_ = nullptr;
  bytes_ = 0;
}

MemoryLedger::Block MemoryLedger::hold(MemoryCategory category, int64_t bytes) {
  const auto index = static_cast<int>(category);
  now_.total += bytes;
  now_.of[index] += bytes;
  peak_of_.of[index] = std::max(peak_of_.of[index], now_.of[index]);
  if (now_.total > at_peak_.total) {
    at_peak_ = now_;
    peak_of_.total = now_.total;
    peak_moment_ = now_doing;
  }
  return Block(this, category, bytes);
}

}  // namespace conclave
