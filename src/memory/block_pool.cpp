#include "memory/block_pool.h"

#include <sys/mman.h>

#include <algorithm>
#include <iterator>
#include <new>

namespace conclave {
namespace {

constexpr size_t page = 4096;

size_t in_pages(size_t bytes) {
  return (bytes + page - 1) / page * page;
}

constexpr size_t huge_page = size_t{2} << 20, least_of_huge_pages = 4 * huge_page;

// Where a block fills them: so the process holds no more than with ordinary ones. That the system has none matters not.
void advise_huge_pages(char* block, size_t bytes) {
  if (bytes < least_of_huge_pages) return;
  const auto begin = (reinterpret_cast<uintptr_t>(block) + huge_page - 1) / huge_page * huge_page;
  const auto end = (reinterpret_cast<uintptr_t>(block) + bytes) / huge_page * huge_page;
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

}  // namespace

BlockPool::BlockPool(size_t capacity) : capacity_(in_pages(capacity)) {
  void* space = ::mmap(nullptr, capacity_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (space == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(space);
  free_.emplace(0, Piece{capacity_, false});
}

BlockPool::~BlockPool() {
  ::munmap(base_, capacity_);
}

// Of all runs of adjacent free pieces that are long enough, the one of which the fewest bytes are not resident yet, the
// shortest of equals, so that long ones stay whole.
BlockPool::Place BlockPool::best_place(size_t bytes) {
  Place best{free_.end(), 0};
  size_t best_length = 0;
  for (auto first = free_.begin(); first != free_.end();) {
    size_t length = 0, untouched = 0;
    auto next = first;
    for (; next != free_.end() && next->first == first->first + length; ++next) {
      if (length < bytes && !next->second.resident) untouched += std::min(next->second.bytes, bytes - length);
      length += next->second.bytes;
    }
    const bool better = best.first == free_.end() || untouched < best.untouched ||
                        (untouched == best.untouched && length < best_length);
    if (length >= bytes && better) {
      best = {first, untouched};
      best_length = length;
    }
    first = next;
  }
  return best;
}

void BlockPool::take(Place place, size_t bytes) {
  auto piece = place.first;
  for (size_t left = bytes; left > 0;) {
    const size_t offset = piece->first;
    Piece rest = piece->second;
    piece = free_.erase(piece);
    const size_t taken = std::min(left, rest.bytes);
    left -= taken;
    rest.bytes -= taken;
    if (rest.bytes > 0) free_.emplace(offset + taken, rest);
  }
}

BlockPool::Block BlockPool::allocate(size_t bytes) {
  bytes = in_pages(bytes);
  std::lock_guard lock(mutex_);
  const Place place = best_place(bytes);
  if (place.first == free_.end()) return {};
  const size_t offset = place.first->first;
  take(place, bytes);
  use_.in_use += bytes;
  use_.most_in_use = std::max(use_.most_in_use, use_.in_use);
  use_.resident += place.untouched;
  const size_t most_resident = use_.most_in_use + use_.most_in_use / kept_part;
  if (place.untouched > 0 && use_.resident > most_resident) give_back(use_.resident - most_resident);
  advise_huge_pages(base_ + offset, bytes);
  return {base_ + offset, place.untouched};
}

void BlockPool::free(void* block, size_t bytes) {
  std::lock_guard lock(mutex_);
  bytes = in_pages(bytes);
  use_.in_use -= bytes;
  insert_free(static_cast<size_t>(static_cast<char*>(block) - base_), {bytes, true});
}

// Returns up to `bytes` of free resident pages to the system, the longest pieces last: they are the likeliest to fit.
void BlockPool::give_back(size_t bytes) {
  while (bytes > 0) {
    auto shortest = free_.end();
    for (auto piece = free_.begin(); piece != free_.end(); ++piece)
      if (piece->second.resident && (shortest == free_.end() || piece->second.bytes < shortest->second.bytes))
        shortest = piece;
    if (shortest == free_.end()) return;
    const size_t offset = shortest->first, given = std::min(in_pages(bytes), shortest->second.bytes);
    const size_t kept = shortest->second.bytes - given;
    free_.erase(shortest);
    if (kept > 0) insert_free(offset, {kept, true});
    ::madvise(base_ + offset + kept, given, MADV_DONTNEED);
    ::madvise(base_ + offset + kept, given, MADV_NOHUGEPAGE);  // a small block may come here next
    insert_free(offset + kept, {given, false});
    use_.resident -= given;
    bytes -= std::min(bytes, given);
  }
}

void BlockPool::insert_free(size_t offset, Piece piece) {
  const auto next = free_.lower_bound(offset);
  if (next != free_.end() && next->first == offset + piece.bytes && next->second.resident == piece.resident) {
    piece.bytes += next->second.bytes;
    free_.erase(next);
  }
  const auto after = free_.lower_bound(offset);
  if (after != free_.begin()) {
    const auto before = std::prev(after);
    if (before->first + before->second.bytes == offset && before->second.resident == piece.resident) {
      before->second.bytes += piece.bytes;
      return;
    }
  }
  free_.emplace(offset, piece);
}

BlockPool::Use BlockPool::use() const {
  std::lock_guard lock(mutex_);
  return use_;
}

}  // namespace conclave
