#undef _FORTIFY_SOURCE  // its longjmp refuses to leave one stack for another
#include <csetjmp>
#include <exception>
#include <memory>
#include <vector>

#include <ucontext.h>

#include "base/error.h"
#include "cuda/launches.h"
#include "emulator/device.h"

namespace conclave {

namespace emulator {
namespace {

constexpr size_t stack_bytes = 128 << 10;
constexpr unsigned warp_size = 32;
constexpr uint64_t no_round = ~uint64_t{0};

// A stack on which one thread of a block runs after the other. The context brings it to life; afterwards _setjmp and
// _longjmp switch, which ask nothing of the system.
struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t context{};
  jmp_buf resume{};
  bool started = false;
  bool done = true;
  uint64_t waits_in_round = no_round;  // of the block's barrier
  std::exception_ptr error;
};

// The lanes that meet in one exchange. Two sets of values: lanes that are through may already bring the next ones.
struct Warp {
  uint64_t value[2][warp_size] = {};
  uint32_t arrived = 0;
  uint64_t round = 0;
};

struct Block {
  std::vector<Warp> warps;
  int waiting = 0, live = 0;
  uint64_t round = 0;
  uint64_t events = 0;  // arrivals, passages and ends: none in a whole turn means that all wait for ever
  const std::function<void()>* thread = nullptr;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<uint64_t> shared;
Block block;
Fiber* running = nullptr;
jmp_buf scheduler;

constexpr uint64_t guard = 0x5eedfacecafebeef;
constexpr uint64_t poison = 0xffffffffffffffff;  // not-a-number in fp32 and in double

void yield() {
  if (_setjmp(running->resume) == 0) _longjmp(scheduler, 1);
}

// The thread, then the next block's thread on the same stack, and so on.
void live() {
  for (;;) {
    try {
      (*block.thread)();
    } catch (...) {
      running->error = std::current_exception();
    }
    running->done = true;
    --block.live;
    ++block.events;
    yield();
  }
}

void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, live, 0);
  setcontext(&fiber.context);
}

bool waits_for_block(const Fiber& fiber) {
  return fiber.waits_in_round == block.round;
}

// Lets the threads of a warp run as far as they get without other warps: a warp that is ahead of the others by all that
// the barriers allow shows where one is missing.
void run_warp(int first) {
  uint64_t events = 0;
  do {
    events = block.events;
    for (int turn = 0; turn < static_cast<int>(warp_size); ++turn) {
      const int i = first + (thread_order == ThreadOrder::ascending ? turn : static_cast<int>(warp_size) - 1 - turn);
      Fiber& fiber = *fibers[i];
      if (fiber.done || waits_for_block(fiber)) continue;
      threadIdx.x = static_cast<unsigned>(i);
      resume(fiber);
      if (!fiber.error) continue;
      const std::exception_ptr error = fiber.error;
      fibers.clear();  // the others stand in the middle of the kernel
      std::rethrow_exception(error);
    }
  } while (block.events != events);
}

void run_block(int threads) {
  const int warps = threads / static_cast<int>(warp_size);
  block.warps.assign(warps, {});
  block.waiting = 0;
  block.live = threads;
  for (int i = 0; i < threads; ++i) {
    fibers[i]->done = false;
    fibers[i]->waits_in_round = no_round;
  }
  while (block.live > 0) {
    const uint64_t events = block.events;
    for (int turn = 0; turn < warps; ++turn)
      run_warp((thread_order == ThreadOrder::ascending ? turn : warps - 1 - turn) * static_cast<int>(warp_size));
    if (block.events == events) {
      const int live = block.live;
      fibers.clear();
      check_invariant(false, "{} of {} threads of block {} wait for threads that never come", live, threads,
                      blockIdx.x);
    }
  }
}

}  // namespace

void run(dim3 blocks, int threads, int64_t shared_bytes, const std::function<void()>& thread) {
  check_invariant(threads > 0 && threads <= 1024 && threads % warp_size == 0, "a block of {} threads", threads);
  while (fibers.size() < static_cast<size_t>(threads)) {
    fibers.push_back(std::make_unique<Fiber>());
    fibers.back()->stack = std::make_unique<char[]>(stack_bytes);
  }
  const size_t words = (shared_bytes + sizeof(uint64_t) - 1) / sizeof(uint64_t);
  block.thread = &thread;
  blockDim = dim3(static_cast<unsigned>(threads));
  gridDim = blocks;
  for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) {
      shared.assign(words, poison);
      shared.push_back(guard);
      run_block(threads);
      check_invariant(shared.back() == guard, "block {} wrote past the {} bytes of its shared memory", blockIdx.x,
                      shared_bytes);
    }
}

void* shared_memory() {
  return shared.data();
}

void device_check(bool holds) {
  check_invariant(holds, "thread {} of block {} was given a value out of range", threadIdx.x, blockIdx.x);
}

void wait_for_block() {
  const uint64_t round = block.round;
  ++block.events;
  if (++block.waiting == static_cast<int>(blockDim.x)) {
    block.waiting = 0;
    ++block.round;
    return;
  }
  running->waits_in_round = round;
  while (block.round == round) yield();
  running->waits_in_round = no_round;
  ++block.events;
}

uint64_t exchange(uint32_t mask, uint64_t value, unsigned source) {
  Warp& warp = block.warps[threadIdx.x / warp_size];
  const uint64_t round = warp.round;
  const unsigned lane = threadIdx.x % warp_size;
  check_invariant((mask >> lane & 1) != 0 && (mask >> source & 1) != 0, "lane {} asks lane {} under mask {:x}", lane,
                  source, mask);
  warp.value[round % 2][lane] = value;
  warp.arrived |= 1u << lane;
  ++block.events;
  if (warp.arrived == mask) {
    warp.arrived = 0;
    ++warp.round;
  } else {
    while (warp.round == round) yield();
    ++block.events;
  }
  return warp.value[round % 2][source];
}

}  // namespace emulator

cuda::Stream cuda::current_stream() {
  return nullptr;
}

}  // namespace conclave
