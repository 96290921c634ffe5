#include "checkpoint/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

#include "base/error.h"
#include "thread_world.h"

namespace conclave {
namespace {

std::vector<std::byte> random_bytes(size_t count, std::mt19937_64& random) {
  std::vector<std::byte> bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

void forget_cached(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  ASSERT_EQ(::fsync(descriptor), 0);
  ASSERT_EQ(::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED), 0);
  ::close(descriptor);
}

// Large writes go around the page cache in whole pages, what is before and after them through it. Oracle: a vector that
// is filled by the same writes. Two writers, as two ranks of an export, share pages at every border.
TEST(File, writes_of_any_position_and_length_by_several_writers_end_where_they_should) {
  const uint64_t seed = 20260711;
  std::mt19937_64 random(seed);
  const TestFolder folder;
  constexpr size_t bytes = 24 << 20;
  std::vector<std::byte> expected(bytes);
  { const File file = File::create(folder / "file", bytes); }
  File writers[] = {File::open_for_writing(folder / "file"), File::open_for_writing(folder / "file")};
  const size_t lengths[] = {1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (4 << 20) + 8193, 3 << 20};
  size_t writer = 0;
  for (size_t begin = 0; begin < bytes;) {
    const size_t count = std::min(lengths[random() % std::size(lengths)], bytes - begin);
    const std::vector<std::byte> data = random_bytes(count + 64, random);
    const auto part = std::span(data).subspan(random() % 64, count);  // at any address
    writers[writer++ % 2].write(begin, part);
    std::copy(part.begin(), part.end(), expected.begin() + static_cast<std::ptrdiff_t>(begin));
    begin += count;
  }
  for (int again = 0; again < 20; ++again) {  // over what is there
    const size_t begin = random() % bytes;
    const size_t count = std::min(lengths[random() % std::size(lengths)], bytes - begin);
    const std::vector<std::byte> data = random_bytes(count, random);
    writers[again % 2].write(begin, data);
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<std::ptrdiff_t>(begin));
  }
  for (const File& file : writers) file.flush();
  const std::string found = read_bytes(folder / "file");
  ASSERT_EQ(found.size(), bytes);
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), bytes), 0) << "seed " << seed;

  // Read at any position into any address, from the cache and, when nothing of the file is there, around it.
  const File reader = File::open_for_reading(folder / "file");
  for (int again = 0; again < 60; ++again) {
    if (again % 2 == 0) forget_cached(folder / "file");
    const size_t begin = again % 3 == 0 ? random() % (bytes / 4096) * 4096 : random() % bytes;
    const size_t count = std::min(lengths[random() % std::size(lengths)], bytes - begin);
    std::vector<std::byte> read(count + 4096);
    const auto part = std::span(read).subspan(random() % 4096, count);
    reader.read(begin, part);
    EXPECT_EQ(std::memcmp(part.data(), expected.data() + begin, count), 0)
        << "seed " << seed << ", " << count << " bytes at " << begin;
  }
  std::vector<std::byte> beyond(2 << 20);
  forget_cached(folder / "file");
  EXPECT_THROW(reader.read(bytes - (1 << 20), beyond), UserError);
  EXPECT_THROW(reader.read(bytes, beyond), UserError);
}

}  // namespace
}  // namespace conclave
