// Collectives by way of the host against the same ones without: the tensors are the CPU's here, which are copied all
// the same. Exact: both add in rank order.
#include "comm/host_staged_communicator.h"

#include <ATen/ATen.h>

#include "dist/world.h"

namespace conclave {
namespace {

using testing::run_ranks;

class HostStaged : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Worlds, HostStaged, ::testing::Values(2, 3));

TEST_P(HostStaged, gives_what_the_communicator_behind_it_gives) {
  run_ranks(GetParam(), [](World& world) {
    AxisGroup group;
    for (int rank = 0; rank < world.size(); ++rank) group.ranks.push_back(rank);
    group.index = world.rank();
    const auto plain = world.communicator(group, "plain");
    HostStagedCommunicator staged(world.communicator(group, "staged"));
    EXPECT_EQ(staged.rank(), world.rank());
    EXPECT_EQ(staged.size(), world.size());
    at::manual_seed(7 + world.rank());
    const int64_t ranks = world.size();
    for (const int64_t n : {0, 1, 1000}) {
      const at::Tensor mine = at::randn({n}), parts = at::randn({ranks * n}), before = mine.clone();
      at::Tensor gathered = at::zeros({ranks * n}), gathered_plain = gathered.clone();
      Pending gathering = staged.all_gather(gathered, mine);
      EXPECT_TRUE(gathered.eq(0).all().item<bool>()) << "not before wait()";
      gathering.wait();
      plain->all_gather(gathered_plain, mine).wait();
      EXPECT_TRUE(gathered.equal(gathered_plain)) << n;
      at::Tensor reduced = at::zeros({n}), reduced_plain = reduced.clone();
      staged.reduce_scatter(reduced, parts).wait();
      plain->reduce_scatter(reduced_plain, parts).wait();
      EXPECT_TRUE(reduced.equal(reduced_plain)) << n;
      for (const Reduction reduction : {Reduction::sum, Reduction::max}) {
        at::Tensor all = mine.clone(), all_plain = mine.clone();
        staged.all_reduce(all, reduction).wait();
        plain->all_reduce(all_plain, reduction).wait();
        EXPECT_TRUE(all.equal(all_plain)) << n;
      }
      at::Tensor told = mine.clone(), told_plain = mine.clone();
      staged.broadcast(told, 1).wait();
      plain->broadcast(told_plain, 1).wait();
      EXPECT_TRUE(told.equal(told_plain)) << n;
      EXPECT_TRUE(mine.equal(before));
    }
    // Rank r sends r + 1 rows to every rank: row counts differ by source.
    const std::vector<int64_t> sent(ranks, world.rank() + 1);
    std::vector<int64_t> received;
    for (int64_t rank = 0; rank < ranks; ++rank) received.push_back(rank + 1);
    const at::Tensor rows = at::randn({ranks * (world.rank() + 1), 3});
    at::Tensor arrived = at::zeros({ranks * (ranks + 1) / 2, 3}), arrived_plain = arrived.clone();
    staged.all_to_all(arrived, rows, received, sent).wait();
    plain->all_to_all(arrived_plain, rows, received, sent).wait();
    EXPECT_TRUE(arrived.equal(arrived_plain));
    staged.barrier();
  });
}

}  // namespace
}  // namespace conclave
