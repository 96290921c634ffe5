// The memory of a step on paper: what meta tensors would take, in the categories of memory_category.h, and the moment
// at which most is there.
#pragma once

#include <string>
#include <vector>

#include "base/step_clock.h"
#include "memory/memory_account.h"

namespace conclave {

// While it lives, every meta tensor is counted that is allocated and freed, ATen's own results included. One at a time,
// in one thread; outlives the tensors.
class PaperMemory final : public RangeListener {
 public:
  PaperMemory();
  ~PaperMemory() override;
  PaperMemory(const PaperMemory&) = delete;

  MemoryReport report() const { return account_.report(); }
  // "backward of layers.3, experts". `units`: names by number.
  std::string peak_moment(const std::vector<std::string>& units) const;

  // Of the step's clock: which part of which unit is computed. The head is the last unit.
  void set_units(size_t units) { units_ = units; }
  void begin(const char* name, size_t unit) override;
  void end() override;
  // A range by hand, of the unit that is computed.
  class Part {
   public:
    Part(PaperMemory& memory, const char* name) : memory_(memory) {
      memory.begin(name, memory.open_.empty() ? memory.units_ : memory.open_.back().unit);
    }
    ~Part() { memory_.end(); }
    Part(const Part&) = delete;

   private:
    PaperMemory& memory_;
  };

 private:
  friend class PaperAllocator;
  struct Moment {
    size_t unit = 0;
    const char* part = "";
    bool is_backward = false;
    bool is_set_up = false;
  };

  MemoryAccount account_;
  size_t units_ = 0;
  std::vector<Moment> open_;  // ranges, the innermost last
  bool is_backward_ = false;
  Moment peak_;
};

}  // namespace conclave
