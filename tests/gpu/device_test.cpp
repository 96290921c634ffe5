// What only a GPU can show of the plug-in: ATen's attention, NCCL, pinned memory on a stream of its own, the count of
// waits.
#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <gtest/gtest.h>

#include <thread>

#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "checkpoint/lent_blocks.h"
#include "device/cuda_plugin.h"
#include "device_kernels.h"
#include "kernel_test.h"
#include "kernels/attention.h"
#include "kernels/linear.h"

namespace conclave {
namespace {

const CudaPlugin& plugin() {
  return *load_cuda_plugin(nullptr);
}

int64_t allocated_bytes() {
  return c10::getDeviceAllocator(at::kCUDA)->getDeviceStats(0).allocated_bytes[0].current;
}

// Oracle: the reference in double. Tolerance: scores and outputs are rounded to bf16 on the way; sums of S terms.
TEST(DeviceAttention, equals_reference) {
  for (const std::optional<int64_t> window : {std::optional<int64_t>{}, std::optional<int64_t>{5}}) {
    const AttentionShape shape{2, 37, 8, 2, 64, window};
    const at::Tensor qkv = random_tensor({2 * 37, 12 * 64}, at::kBFloat16);
    const at::Tensor grad_out = random_tensor({2 * 37, 8 * 64}, at::kBFloat16);
    at::Tensor out = at::empty_like(grad_out), logsumexp = at::empty({2, 8, 37}), grad_qkv = at::empty_like(qkv);
    at::Tensor out_exact = out.to(at::kDouble), logsumexp_exact = logsumexp.to(at::kDouble);
    at::Tensor grad_exact = qkv.to(at::kDouble);
    reference::attention_forward(out_exact, logsumexp_exact, qkv.to(at::kDouble), shape);
    reference::attention_backward(grad_exact, grad_out.to(at::kDouble), out_exact, logsumexp_exact, qkv.to(at::kDouble),
                                  shape);
    out = out.cuda();
    logsumexp = logsumexp.cuda();
    grad_qkv = grad_qkv.cuda();
    attention_forward(out, logsumexp, qkv.cuda(), shape);
    attention_backward(grad_qkv, grad_out.cuda(), out, logsumexp, qkv.cuda(), shape);
    expect_close("out", out.cpu(), out_exact, {2 * eps_bf16, 2 * eps_bf16});
    expect_close("logsumexp", logsumexp.cpu(), logsumexp_exact, {eps_bf16, eps_bf16});
    expect_close("grad_qkv", grad_qkv.cpu(), grad_exact, {4 * eps_bf16, 16 * eps_bf16});
  }
}

// The same for documents, which FlashAttention takes as sequences of their own lengths.
TEST(DeviceAttention, of_documents_equals_reference) {
  for (const std::optional<int64_t> window : {std::optional<int64_t>{}, std::optional<int64_t>{5}}) {
    AttentionShape shape{2, 37, 8, 2, 64, window};
    const std::vector<int64_t> ends = {1, 12, 37, 40, 74};
    const Documents on_host = documents_of(ends, 37, at::kCPU), on_device = documents_of(ends, 37, at::kCUDA);
    const at::Tensor qkv = random_tensor({2 * 37, 12 * 64}, at::kBFloat16);
    const at::Tensor grad_out = random_tensor({2 * 37, 8 * 64}, at::kBFloat16);
    at::Tensor out_exact = at::empty_like(grad_out, at::kDouble), grad_exact = at::empty_like(qkv, at::kDouble);
    at::Tensor logsumexp_exact = at::empty({2, 8, 37}, at::kDouble);
    shape.documents = &on_host;
    reference::attention_forward(out_exact, logsumexp_exact, qkv.to(at::kDouble), shape);
    reference::attention_backward(grad_exact, grad_out.to(at::kDouble), out_exact, logsumexp_exact, qkv.to(at::kDouble),
                                  shape);
    at::Tensor out = at::empty_like(grad_out).cuda(), grad_qkv = at::empty_like(qkv).cuda();
    at::Tensor logsumexp = at::empty({2, 8, 37}).cuda();
    shape.documents = &on_device;
    attention_forward(out, logsumexp, qkv.cuda(), shape);
    attention_backward(grad_qkv, grad_out.cuda(), out, logsumexp, qkv.cuda(), shape);
    expect_close("out", out.cpu(), out_exact, {2 * eps_bf16, 2 * eps_bf16});
    expect_close("logsumexp", logsumexp.cpu(), logsumexp_exact, {eps_bf16, eps_bf16});
    expect_close("grad_qkv", grad_qkv.cpu(), grad_exact, {4 * eps_bf16, 16 * eps_bf16});
  }
}

// Long enough that blocks of keys of one query run at once. What ATen was told about other operators stays.
TEST(DeviceAttention, backward_gives_the_same_bits_again) {
  const AttentionShape shape{1, 2048, 4, 2, 64, {}};
  const at::Tensor qkv = random_tensor({2048, 8 * 64}, at::kBFloat16).cuda();
  const at::Tensor grad_out = random_tensor({2048, 4 * 64}, at::kBFloat16).cuda();
  at::Tensor out = at::empty_like(grad_out), logsumexp = at::empty({1, 4, 2048}, qkv.options().dtype(at::kFloat));
  attention_forward(out, logsumexp, qkv, shape);
  const auto backward = [&] {
    at::Tensor grad_qkv = at::empty_like(qkv);
    attention_backward(grad_qkv, grad_out, out, logsumexp, qkv, shape);
    return grad_qkv.cpu();
  };
  const at::Tensor first = backward();
  for (int again = 0; again < 5; ++again) expect_identical("grad_qkv", backward(), first);
  EXPECT_FALSE(at::globalContext().deterministicAlgorithms());
}

// Oracle: the plan's formula (device/paper_attention.cpp) for a fixed order of sums: results, sums in fp32 for each
// part of the processors, a key's and a value's gradient of each query head. Tolerance 5 %.
TEST(DeviceAttention, backward_allocates_what_is_planned) {
  const int64_t sequence = 2048, heads = 8, kv_heads = 2, head_dim = 64;
  const AttentionShape shape{1, sequence, heads, kv_heads, head_dim, {}};
  const at::Tensor qkv = random_tensor({sequence, (heads + 2 * kv_heads) * head_dim}, at::kBFloat16).cuda();
  const at::Tensor grad_out = random_tensor({sequence, heads * head_dim}, at::kBFloat16).cuda();
  at::Tensor out = at::empty_like(grad_out), grad_qkv = at::empty_like(qkv);
  at::Tensor logsumexp = at::empty({1, heads, sequence}, qkv.options().dtype(at::kFloat));
  attention_forward(out, logsumexp, qkv, shape);
  c10::getDeviceAllocator(at::kCUDA)->resetPeakStats(qkv.device().index());
  const int64_t before = plugin().peak_memory();
  attention_backward(grad_qkv, grad_out, out, logsumexp, qkv, shape);
  const int64_t parts = (plugin().chip().processors + heads - 1) / heads;
  const int64_t planned = static_cast<int64_t>(qkv.nbytes()) + sequence * heads * (head_dim * parts + 1) * 4 +
                          2 * sequence * heads * head_dim * 2;
  const int64_t needed = plugin().peak_memory() - before;
  EXPECT_NEAR(static_cast<double>(needed), static_cast<double>(planned), 0.05 * static_cast<double>(planned));
}

// Oracle: the same products on the CPU in double. Tolerance: y is rounded to bf16 once, the weight's gradient never:
// each of its sums errs by eps of fp32 for every term, none of which is over 25.
TEST(DeviceLinear, products_accumulate_in_fp32) {
  const KernelsAsInTraining kernels;
  for (const int64_t rows : {0, 1, 129}) {
    const at::Tensor x = random_tensor({rows, 256}, at::kBFloat16), w = random_tensor({64, 256}, at::kBFloat16);
    const at::Tensor grad_y = random_tensor({rows, 64}, at::kBFloat16);
    at::Tensor y = at::empty({rows, 64}, x.options()).cuda(), grad_w = at::ones({64, 256}).cuda();
    linear_forward(y, x.cuda(), w.cuda());
    linear_backward_weight(grad_w, grad_y.cuda(), x.cuda(), /*accumulate=*/true);
    expect_close("y", y.cpu(), at::mm(x.to(at::kDouble), w.to(at::kDouble).t()), {eps_bf16, 1e-3});
    expect_close("grad_w", grad_w.cpu(), at::mm(grad_y.to(at::kDouble).t(), x.to(at::kDouble)) + 1,
                 {0, 25 * static_cast<double>(rows + 2) * eps_fp32});
  }
}

// In a group of one every collective copies.
TEST(DeviceNccl, world_of_one) {
  const auto store = c10::make_intrusive<c10d::HashStore>();
  const std::chrono::milliseconds timeout(30'000);
  const auto watchdog =
      std::make_shared<Watchdog>(store, "the test's store", /*serves_store=*/true, 0, 1, WatchdogOptions{}, timeout);
  {
    const auto group =
        plugin().make_communicator("world", 0, 1, store, watchdog, watchdog->watch("world", {0}), timeout);
    const at::Tensor input = at::randn({6, 4}).cuda();
    at::Tensor output = at::zeros_like(input);
    group->all_gather(output, input).wait();
    expect_identical("all_gather", output.cpu(), input.cpu());
    output.zero_();
    group->reduce_scatter(output, input).wait();
    expect_identical("reduce_scatter", output.cpu(), input.cpu());
    output.zero_();
    group->all_to_all(output, input, {6}, {6}).wait();
    expect_identical("all_to_all", output.cpu(), input.cpu());
    group->all_to_all(at::empty({0, 4}, input.options()), at::empty({0, 4}, input.options()), {0}, {0}).wait();
    group->all_reduce(output, Reduction::max).wait();
    group->broadcast(output, 0).wait();
    group->barrier();
    expect_identical("all_reduce and broadcast", output.cpu(), input.cpu());
    // What was waited for is the caller's alone.
    const int64_t before = allocated_bytes();
    group->all_reduce(at::ones({1 << 20}, input.options()), Reduction::sum).wait();
    EXPECT_EQ(allocated_bytes(), before);
  }
  watchdog->finish();
  watchdog->end();
}

TEST(DevicePinnedSlots, bring_back_what_they_were_given) {
  const auto slots = plugin().make_pinned_slots();
  slots->reserve(2, 1 << 20);
  const at::Tensor first = at::randn({1000, 100}).cuda(), second = at::randn({513, 7}).cuda().to(at::kBFloat16);
  slots->write(0, first)();
  slots->write(1, second)();
  at::Tensor first_again = at::zeros_like(first), second_again = at::zeros_like(second);
  slots->read(1, second_again)();
  slots->read(0, first_again)();
  expect_identical("first", first_again.cpu(), first.cpu());
  expect_identical("second", second_again.cpu(), second.cpu());
}

// What leaves is let go when its copy was waited for and dropped, not before.
TEST(DevicePinnedSlots, hold_what_leaves_until_it_has_left) {
  const auto slots = plugin().make_pinned_slots();
  slots->reserve(1, 1 << 22);
  at::empty({1}, at::device(at::kCUDA));  // the allocator has begun
  const int64_t before = allocated_bytes();
  OffloadMedium::Copy copy = slots->write(0, at::ones({1 << 20}, at::device(at::kCUDA)));
  EXPECT_GE(allocated_bytes() - before, 1 << 22);
  copy();
  copy = nullptr;
  EXPECT_EQ(allocated_bytes(), before);
}

// The blocks are full of 7 when they are lent, though the device has not come so far, and of -1 when they are back.
TEST(DeviceLentBlocks, are_read_as_they_were_lent) {
  for (const int before : {0, 1, 3}) {
    std::vector<at::Tensor> blocks;
    for (int i = 0; i < 3; ++i) blocks.push_back(at::zeros({1 << 20}, at::device(at::kCUDA)));
    at::Tensor busy = at::ones({4096, 4096}, at::device(at::kCUDA));
    for (int i = 0; i < 20; ++i) busy = at::mm(busy, busy);
    for (at::Tensor& block : blocks) block.fill_(7);
    LentBlocks lent;
    lent.lend(blocks);
    std::thread owner;
    for (int i = 0; i < 3; ++i) {
      if (i == before)
        owner = std::thread([&] {
          lent.take_back();
          for (at::Tensor& block : blocks) block.fill_(-1);
        });
      const at::Tensor block = lent.next();
      EXPECT_TRUE(block.is_cpu() && (block == 7).all().item<bool>())
          << "block " << i << ", taken back after " << before;
    }
    EXPECT_FALSE(lent.next().defined());
    lent.end();
    if (owner.joinable()) owner.join();
  }
}

TEST(DeviceMemory, peak_holds_what_was_allocated) {
  at::empty({1}, at::device(at::kCUDA));  // the allocator has begun
  const int64_t before = plugin().peak_memory();
  at::empty({int64_t{1} << 28}, at::device(at::kCUDA).dtype(at::kByte));
  EXPECT_GE(plugin().peak_memory(), int64_t{1} << 28);
  EXPECT_GE(plugin().peak_memory(), before);
}

TEST(DeviceSynchronizations, are_counted_where_the_host_waits) {
  const at::Tensor number = at::ones({3}).cuda();
  plugin().count_synchronizations(true);
  const at::Tensor sum = number * 2 + 1;
  EXPECT_EQ(plugin().synchronizations(), 0);
  EXPECT_EQ(sum[0].item<float>(), 3);
  EXPECT_EQ(plugin().synchronizations(), 1);
  EXPECT_EQ(sum.cpu().numel(), 3);
  EXPECT_EQ(plugin().synchronizations(), 2);
  plugin().count_synchronizations(false);
}

}  // namespace
}  // namespace conclave
