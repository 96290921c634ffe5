#include "memory/memory_category.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include "memory/block_pool.h"
#include "memory/memory_account.h"

namespace conclave {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t least_pooled_bytes = SIZE_MAX;  // the sanitizer watches over blocks it gave out itself
#else
constexpr size_t least_pooled_bytes = size_t{256} << 10;
#endif

thread_local MemoryCategory current_category = MemoryCategory::workspace;

// Never destroyed: tensors with static lifetime are freed after main.
MemoryAccount& account() {
  static auto* const instance = new MemoryAccount;
  return *instance;
}

// Stands before each block; one cache line, so that the block stays aligned as ATen expects.
struct alignas(64) BlockHeader {
  int64_t bytes;
  MemoryCategory category;

  size_t size() const { return size_of(static_cast<size_t>(bytes)); }
  static size_t size_of(size_t bytes) { return sizeof(BlockHeader) + (bytes + 63) / 64 * 64; }
};

// Never destroyed, as the account. More address space than the machine has memory: free pieces between blocks cost
// none.
BlockPool& pool() {
  static auto* const instance =
      new BlockPool(4 * static_cast<size_t>(::sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(::sysconf(_SC_PAGESIZE)));
  return *instance;
}

void free_block(void* data) {
  if (data == nullptr) return;
  auto* header = static_cast<BlockHeader*>(data) - 1;
  account().remove(header->bytes, header->category);
  if (header->size() >= least_pooled_bytes)
    pool().free(header, header->size());
  else
    std::free(header);
}

class CountingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    if (bytes > 0) {
      const size_t size = BlockHeader::size_of(bytes);
      const BlockPool::Block block = size >= least_pooled_bytes
                                         ? pool().allocate(size)
                                         : BlockPool::Block{std::aligned_alloc(alignof(BlockHeader), size), size};
      if (block.data == nullptr) throw std::bad_alloc();
      auto* header = new (block.data) BlockHeader{static_cast<int64_t>(bytes), current_category};
      account().add(header->bytes, block.fresh, header->category);
      data = header + 1;
    }
    return {data, data, &free_block, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* destination, const void* source, size_t bytes) const override {
    std::memcpy(destination, source, bytes);
  }
};

}  // namespace

MemoryScope::MemoryScope(MemoryCategory category) : outer_(current_category) {
  current_category = category;
}
MemoryScope::~MemoryScope() {
  current_category = outer_;
}

MemoryCategory current_memory_category() {
  return current_category;
}

void install_counting_allocator() {
  static CountingAllocator allocator;
  // Another thread may allocate while this one forks, as the workers of a PyTorch program's data loader are made.
  constexpr auto release = [] {
    pool().unlock();
    account().unlock();
  };
  ::pthread_atfork(
      [] {
        account().lock();
        pool().lock();
      },
      release, release);
  c10::SetCPUAllocator(&allocator, /*priority=*/1);
}

MemoryReport memory_report() {
  return account().report();
}
void reset_memory_peaks() {
  account().reset();
}

}  // namespace conclave
