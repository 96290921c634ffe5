// What the emulator must notice, or a kernel that is wrong on a GPU would pass here.
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e5m2.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"
#include "cuda/device_code.h"

namespace conclave {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

// Every thread writes its number and reads its neighbour's; `waits` says whether it waits in between.
template <bool waits>
void read_neighbour(int* out) {
  __shared__ int number[64];
  number[threadIdx.x] = -1;
  __syncthreads();
  number[threadIdx.x] = static_cast<int>(threadIdx.x + blockIdx.x);
  if (waits) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = number[(threadIdx.x + 1) % blockDim.x];
}

std::vector<int> neighbours(void (*kernel)(int*), emulator::ThreadOrder order) {
  emulator::thread_order = order;
  std::vector<int> out(3 * 64, -7);
  cuda::launch(nullptr, {.blocks = 3, .threads = 64}, kernel, out.data());
  return out;
}

TEST(Emulator, runs_all_threads_of_all_blocks_and_waits_at_barriers) {
  for (const auto order : {emulator::ThreadOrder::ascending, emulator::ThreadOrder::descending}) {
    const std::vector<int> out = neighbours(read_neighbour<true>, order);
    for (int i = 0; i < 3 * 64; ++i) EXPECT_EQ(out[i], (i % 64 + 1) % 64 + i / 64);
  }
}

TEST(Emulator, a_forgotten_barrier_shows_in_one_of_the_orders) {
  EXPECT_NE(neighbours(read_neighbour<false>, emulator::ThreadOrder::ascending),
            neighbours(read_neighbour<true>, emulator::ThreadOrder::ascending));
}

// Twice the sum over the warps of what each brought; `waits` says whether all have read before the second is brought.
template <bool waits>
void add_warps_twice(int* out) {
  __shared__ int of_warp[2];
  int sum = 0;
  for (int round = 1; round <= 2; ++round) {
    if (waits) __syncthreads();
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = round;
    __syncthreads();
    sum = 10 * sum + of_warp[0] + of_warp[1];
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

TEST(Emulator, a_warp_may_be_as_far_ahead_as_barriers_allow) {
  for (const auto order : {emulator::ThreadOrder::ascending, emulator::ThreadOrder::descending}) {
    EXPECT_THAT(neighbours(add_warps_twice<true>, order), testing::Each(24));
    EXPECT_THAT(neighbours(add_warps_twice<false>, order), testing::Not(testing::Each(24)));
  }
}

void half_of_the_block_waits() {
  if (threadIdx.x < 32) __syncthreads();
}

TEST(Emulator, a_barrier_that_not_all_threads_reach_is_an_error) {
  EXPECT_THAT([] { cuda::launch(nullptr, {.blocks = 1, .threads = 64}, half_of_the_block_waits); },
              ThrowsMessage<InvariantError>(HasSubstr("32 of 64 threads of block 0 wait")));
}

void writes_past_shared_memory() {
  cuda::shared_memory<double>()[blockDim.x] = 1;
}

TEST(Emulator, a_write_past_shared_memory_is_an_error) {
  const cuda::Grid grid{.blocks = 1, .threads = 32, .shared_bytes = 32 * sizeof(double)};
  EXPECT_THAT([&] { cuda::launch(nullptr, grid, writes_past_shared_memory); },
              ThrowsMessage<InvariantError>(HasSubstr("wrote past the 256 bytes")));
}

void third_thread_breaks_a_check() {
  cuda::device_check(threadIdx.x != 2);
  __syncthreads();
}

// And the next launch starts anew.
TEST(Emulator, a_value_out_of_range_is_an_error_that_names_the_thread) {
  for (int again = 0; again < 2; ++again)
    EXPECT_THAT([] { cuda::launch(nullptr, {.blocks = 2, .threads = 32}, third_thread_breaks_a_check); },
                ThrowsMessage<InvariantError>(HasSubstr("thread 2 of block 0")));
  EXPECT_EQ(neighbours(read_neighbour<true>, emulator::ThreadOrder::descending)[0], 1);
}

template <class V>
void reduce(V* out) {
  const V value = static_cast<V>(threadIdx.x) + static_cast<V>(blockIdx.x);
  out[blockIdx.x * blockDim.x + threadIdx.x] = cuda::block_reduce(value, cuda::Sum{});
}

TEST(DeviceCode, block_reduce_gives_every_thread_the_sum) {
  for (const int threads : {32, 96, 1024}) {
    std::vector<double> sum(2 * threads);
    cuda::launch(nullptr, {.blocks = 2, .threads = threads}, reduce<double>, sum.data());
    for (int i = 0; i < 2 * threads; ++i)
      EXPECT_EQ(sum[i], threads * (threads - 1) / 2.0 + (i / threads) * static_cast<double>(threads));
  }
}

// Oracle: the rule itself, ties to even; 1 + 2^-8 lies in the middle of 1 and its neighbour 1 + 2^-7.
TEST(DeviceCode, bf16_rounds_to_nearest_even) {
  const auto through = [](float x) { return cuda::widened(cuda::narrowed<cuda::Bf16>(x)); };
  EXPECT_EQ(through(1.0f + 0x1p-8f), 1.0f);
  EXPECT_EQ(through(1.0f + 0x1.02p-8f), 1.0f + 0x1p-7f);
  EXPECT_EQ(through(1.0f + 0x3p-8f), 1.0f + 0x1p-6f);
  EXPECT_EQ(through(-3.5f), -3.5f);
  EXPECT_TRUE(std::isinf(through(3.4e38f)));
  EXPECT_TRUE(std::isnan(through(NAN)));
}

// Oracle: c10's conversions, and beyond their range the largest number; numbers of all exponents, every tie among them.
TEST(DeviceCode, fp8_rounds_to_nearest_even_and_saturates) {
  const auto e4m3 = [](float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); };
  const auto e5m2 = [](float x) { return __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2); };
  for (uint32_t high = 0; high < 1u << 16; ++high)
    for (const uint32_t low : {0u, 1u, 0x8000u}) {
      const float x = __uint_as_float(high << 16 | low);
      if (std::isnan(x)) continue;
      // From here on c10 has no number.
      EXPECT_EQ(e4m3(x), std::fabs(x) <= 448 ? c10::Float8_e4m3fn(x).x : x < 0 ? 0xfe : 0x7e) << x;
      EXPECT_EQ(e5m2(x), std::fabs(x) <= 57344 ? c10::Float8_e5m2(x).x : x < 0 ? 0xfb : 0x7b) << x;
    }
  EXPECT_EQ(e4m3(NAN), 0x7f);
  EXPECT_EQ(e5m2(-NAN), 0x7f);
}

}  // namespace
}  // namespace conclave
