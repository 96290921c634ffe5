#include "device/paper_memory.h"

#include <c10/core/Allocator.h>

#include <string_view>

#include "base/error.h"

namespace conclave {
namespace {

PaperMemory* current = nullptr;

struct Block {
  MemoryAccount* account;
  int64_t bytes;
  MemoryCategory category;
};

void free_block(void* context) {
  const auto* block = static_cast<Block*>(context);
  block->account->remove(block->bytes, block->category);
  delete block;
}

}  // namespace

// Gives out blocks without memory.
class PaperAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device meta(c10::DeviceType::Meta);
    if (current == nullptr || bytes == 0) return {nullptr, nullptr, [](void*) {}, meta};
    auto* block = new Block{&current->account_, static_cast<int64_t>(bytes), current_memory_category()};
    if (block->account->add(block->bytes, 0, block->category) && !current->open_.empty())
      current->peak_ = current->open_.back();
    return {nullptr, block, free_block, meta};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void*, const void*, size_t) const override {}
};

PaperMemory::PaperMemory() {
  check_invariant(current == nullptr, "two steps run on paper at once");
  static PaperAllocator allocator;
  c10::SetAllocator(c10::kMeta, &allocator, /*priority=*/1);
  current = this;
}

PaperMemory::~PaperMemory() {
  current = nullptr;
}

// The first range of a micro-step is the embedding's; after the head's the layers come in descending order.
void PaperMemory::begin(const char* name, size_t unit) {
  const bool computes = std::string_view(name) == name_of(Phase::computing);
  if (computes && unit + 1 == units_) is_backward_ = true;
  open_.push_back({unit, computes ? "" : name, is_backward_, true});
}

void PaperMemory::end() {
  const Moment ended = open_.back();
  open_.pop_back();
  if (ended.unit == 0 && ended.is_backward && *ended.part == '\0') is_backward_ = false;
}

std::string PaperMemory::peak_moment(const std::vector<std::string>& units) const {
  if (!peak_.is_set_up) return "setting up";
  if (peak_.unit >= units.size()) return *peak_.part == '\0' ? "the step" : peak_.part;
  const std::string& name = units[peak_.unit];
  if (peak_.unit + 1 == units.size()) return name + ", loss";
  const std::string part = *peak_.part == '\0' ? "" : std::string(", ") + peak_.part;
  return (peak_.is_backward ? "backward of " : "forward of ") + name + part;
}

}  // namespace conclave
