// What would be allocated, category by category, and the moment at which most is: memory's account (memory/
// memory_category.h) without the memory. Blocks free themselves, so a walk reads like the code whose tensors it stands
// for.
#pragma once

#include <string>
#include <utility>

#include "base/memory_use.h"

namespace conclave {

class MemoryLedger {
 public:
  // What the walk is doing. `part` may be empty.
  struct Moment {
    const char* phase = "";  // "backward of"
    const char* unit = "";   // "layers.3"; outlives the ledger
    const char* part = "";   // "experts"
    std::string text() const;
  };

  class Block {
   public:
    Block() = default;
    Block(Block&& other) noexcept { *this = std::move(other); }
    Block& operator=(Block&& other) noexcept;
    ~Block() { free(); }

    void free();
    int64_t bytes() const { return bytes_; }

   private:
    friend class MemoryLedger;
    Block(MemoryLedger* ledger, MemoryCategory category, int64_t bytes)
        : ledger_(ledger), category_(category), bytes_(bytes) {}

    MemoryLedger* ledger_ = nullptr;
    MemoryCategory category_{};
    int64_t bytes_ = 0;
  };

  MemoryLedger() = default;
  MemoryLedger(const MemoryLedger&) = delete;

  // The ledger outlives the block.
  Block hold(MemoryCategory category, int64_t bytes);

  Moment now_doing;

  const MemoryUse& now() const { return now_; }
  const MemoryUse& at_peak() const { return at_peak_; }
  const MemoryUse& peak_of() const { return peak_of_; }  // total is the highest total
  const Moment& peak_moment() const { return peak_moment_; }

 private:
  MemoryUse now_;
  MemoryUse at_peak_;
  MemoryUse peak_of_;
  Moment peak_moment_;
};

}  // namespace conclave
