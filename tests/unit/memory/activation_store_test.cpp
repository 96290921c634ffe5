#include "memory/activation_store.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "memory/memory_category.h"
#include "memory/scratch_file.h"
#include "unit/metrics/file_size_limit.h"
#include "unit/metrics/temporary_folder.h"

namespace conclave {
namespace {

// Before any tensor of this program.
const bool installed = (install_counting_allocator(), true);

int64_t activation_bytes() {
  return memory_report().now.of[static_cast<int>(MemoryCategory::activations)];
}

at::Tensor input_of(int64_t layer, int64_t rows, at::ScalarType dtype) {
  const MemoryScope scope(MemoryCategory::activations);
  return (at::arange(rows * 16) + 1000 * layer).to(dtype).view({rows, 16});
}

class CountedStore {
 public:
  CountedStore(int64_t layers, int64_t horizon) : clock(1) {
    store.emplace(std::make_unique<ScratchFile>(folder / "scratch"), layers, horizon, clock);
  }
  TemporaryFolder folder;
  StepClock clock;
  std::optional<ActivationStore> store;
};

// Oracle: the values that were put in. Sizes: none, one row, many pages, another size in each micro-step.
TEST(ActivationStore, gives_back_the_same_bits_in_every_size_and_horizon) {
  ASSERT_TRUE(installed);
  for (const int64_t layers : {1, 2, 3, 7})
    for (const int64_t horizon : {1, 2, 3, 7, 100})
      for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
        SCOPED_TRACE(fmt::format("{} layers, horizon {}, {}", layers, horizon, c10::toString(dtype)));
        CountedStore counted(layers, horizon);
        counted.store->reserve(3000 * 16 * 4);
        for (const int64_t rows : {3000, 0, 1, 1024}) {
          for (int64_t layer = 0; layer < layers; ++layer) counted.store->put(layer, input_of(layer, rows, dtype));
          for (int64_t layer = layers; layer-- > 0;)
            ASSERT_TRUE(counted.store->take(layer).equal(input_of(layer, rows, dtype))) << layer << ", rows " << rows;
        }
        EXPECT_EQ(counted.store->most_on_device(), std::min(layers, horizon));
      }
}

// Two counts that know nothing of each other: the store's own, and the bytes of the memory account.
TEST(ActivationStore, no_more_than_the_horizon_is_on_the_device) {
  constexpr int64_t layers = 9, rows = 4096, input_bytes = rows * 16 * 4;
  for (const int64_t horizon : {1, 2, 4}) {
    SCOPED_TRACE(fmt::format("horizon {}", horizon));
    const int64_t before = activation_bytes();
    CountedStore counted(layers, horizon);
    counted.store->reserve(input_bytes);
    for (int64_t layer = 0; layer < layers; ++layer) {
      counted.store->put(layer, input_of(layer, rows, at::kFloat));
      EXPECT_LE(activation_bytes() - before, horizon * input_bytes) << "after layer " << layer;
    }
    EXPECT_EQ(activation_bytes() - before, horizon * input_bytes) << "the last ones stay";
    at::Tensor input_TH;
    for (int64_t layer = layers; layer-- > 0;) {
      input_TH.reset();  // used up
      input_TH = counted.store->take(layer);
      EXPECT_LE(activation_bytes() - before, horizon * input_bytes) << "at layer " << layer;
    }
    input_TH.reset();
    EXPECT_EQ(activation_bytes(), before);
    EXPECT_EQ(counted.store->most_on_device(), horizon);
    EXPECT_EQ(counted.store->offloaded_layers(), layers - horizon);
  }
}

TEST(ActivationStore, waiting_counts_as_offload_time) {
  CountedStore counted(3, 1);
  counted.store->reserve(1 << 24);
  for (int64_t layer = 0; layer < 3; ++layer) counted.store->put(layer, at::ones({1 << 22}));
  for (int64_t layer = 3; layer-- > 0;) counted.store->take(layer);
  EXPECT_GT(total_seconds(counted.clock.take(), Phase::offload), 0.0);  // a horizon of 1 leaves nothing to hide behind
}

TEST(ScratchFile, has_no_name_and_leaves_the_folder_empty) {
  TemporaryFolder folder;
  ScratchFile file(folder / "made/when/needed");
  EXPECT_FALSE(std::filesystem::exists(folder / "made"));
  file.reserve(4, 10'000);
  EXPECT_TRUE(std::filesystem::is_empty(folder / "made/when/needed"));
}

std::string reserve_error(ScratchFile& file, int64_t slots, int64_t bytes) {
  try {
    file.reserve(slots, bytes);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

TEST(ScratchFile, a_disk_without_room_is_an_error_that_names_folder_and_sizes) {
  TemporaryFolder folder;
  ScratchFile file(folder / "scratch");
  const int64_t bytes = int64_t{1} << 50;  // a PiB
  const std::string error = reserve_error(file, 2, bytes);
  EXPECT_NE(error.find("need 2147483648.0 MiB"), std::string::npos) << error;
  EXPECT_NE(error.find((folder / "scratch").string()), std::string::npos) << error;
  EXPECT_NE(error.find("MiB are free"), std::string::npos) << error;
  EXPECT_NE(error.find("memory.offload_folder"), std::string::npos) << error;
}

// The file system has room, but the space cannot be had: seen when it is reserved, not when it is written.
TEST(ScratchFile, a_reservation_that_fails_is_an_error) {
  TemporaryFolder folder;
  ScratchFile file(folder / "scratch");
  file.reserve(1, 4096);
  {
    const FileSizeLimit limit(1 << 20);
    const std::string error = reserve_error(file, 2, 1 << 20);
    EXPECT_NE(error.find("need 2.0 MiB"), std::string::npos) << error;
    EXPECT_NE(error.find("File too large"), std::string::npos) << error;
  }
  file.reserve(2, 1 << 20);  // when there is room again
  file.write(1, at::ones({100}))();
  at::Tensor back = at::zeros({100});
  file.read(1, back)();
  EXPECT_TRUE(back.equal(at::ones({100})));
}

TEST(ScratchFile, a_folder_that_cannot_be_made_is_the_users_mistake) {
  ScratchFile file("/proc/no/such");
  EXPECT_THROW(file.reserve(1, 1), UserError);
}

}  // namespace
}  // namespace conclave
