// What needs no other rank: handles, the communicators of one rank, of nobody, and the count.
#include "comm/communicator.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "comm/counting_communicator.h"
#include "comm/local_communicator.h"
#include "comm/shapes.h"
#include "comm/world.h"
#include "fake_communicator.h"
#include "mesh/collective_bytes.h"

namespace conclave {
namespace {

TEST(Pending, waits_once_wherever_it_is) {
  int waited = 0;
  const auto make = [&] { return Pending([&] { ++waited; }); };
  EXPECT_TRUE(Pending().is_ready());
  Pending pending = make();
  EXPECT_FALSE(pending.is_ready());
  Pending moved = std::move(pending);
  EXPECT_TRUE(pending.is_ready());
  moved.wait();
  moved.wait();
  EXPECT_EQ(waited, 1);
  moved = make();
  moved = make();  // the one it held is waited for
  EXPECT_EQ(waited, 2);
  { Pending forgotten = make(); }
  EXPECT_EQ(waited, 3);
  {
    Pending failing([] { throw PeerLostError("lost"); });
  }  // reported, not thrown
  try {
    Pending abandoned = make();
    throw std::runtime_error("elsewhere");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(waited, 3) << "an exception does not wait for other ranks";
}

TEST(LocalCommunicator, copies) {
  World world({}, {});
  const auto comm = world.communicator({{0}, 0}, "shard");
  const at::Tensor input = at::arange(6, at::kFloat).view({3, 2});
  for (const bool gather : {true, false}) {
    const at::Tensor output = at::zeros({6});
    (gather ? comm->all_gather(output, input) : comm->reduce_scatter(output, input)).wait();
    EXPECT_TRUE(output.equal(input.view(-1)));
  }
  const at::Tensor rows = at::zeros({3, 2});
  comm->all_to_all(rows, input, {3}, {3}).wait();
  EXPECT_TRUE(rows.equal(input));
  comm->all_reduce(rows, Reduction::max).wait();
  EXPECT_TRUE(rows.equal(input));
  comm->barrier();
  world.finish();
}

TEST(Shapes, wrong_ones_are_refused_with_their_values) {
  FakeCommunicator comm("expert", 1, 4);
  const at::Tensor rows = at::zeros({10, 3});
  EXPECT_THROW(comm.all_gather(at::zeros({7}), at::zeros({2})), InvariantError);
  EXPECT_THROW(comm.all_gather(at::zeros({8}), at::zeros({2}, at::kInt)), InvariantError);
  EXPECT_THROW(comm.all_gather(at::zeros({4, 2}).t(), at::zeros({2})), InvariantError);
  EXPECT_THROW(comm.all_to_all(rows, rows, {5, 0, 5, 0}, {5, 0, 4, 0}), InvariantError);
  EXPECT_THROW(comm.all_to_all(rows, rows, {5, 0, 5, 0}, {4, 1, 5, 0}), InvariantError) << "own rows";
  EXPECT_THROW(comm.all_to_all(rows, rows, {15, 0, -5, 0}, {5, 0, 5, 0}), InvariantError);
  EXPECT_THROW(comm.all_to_all(rows, rows, {5, 5}, {5, 5}), InvariantError);
  EXPECT_THROW(comm.broadcast(rows, 4), InvariantError);
}

TEST(Shapes, parts_cover_all_elements_in_order) {
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{63}, int64_t{64}, int64_t{1000}, int64_t{1} << 60})
    for (const int parts : {1, 3, 64}) {
      EXPECT_EQ(part_begin(count, 0, parts), 0);
      EXPECT_EQ(part_begin(count, parts, parts), count);
      for (int part = 0; part < parts; ++part) {
        const int64_t size = part_begin(count, part + 1, parts) - part_begin(count, part, parts);
        EXPECT_GE(size, count / parts);
        EXPECT_LE(size, count / parts + 1);
      }
    }
}

TEST(FakeCommunicator, fills_outputs_with_its_own_values) {
  FakeCommunicator comm("expert", 1, 3);
  const at::Tensor gathered = at::zeros({6});
  comm.all_gather(gathered, at::tensor({1.0f, 2.0f})).wait();
  EXPECT_TRUE(gathered.equal(at::tensor({1.0f, 2.0f, 1.0f, 2.0f, 1.0f, 2.0f})));
  const at::Tensor own = at::zeros({2});
  comm.reduce_scatter(own, at::arange(6, at::kFloat)).wait();
  EXPECT_TRUE(own.equal(at::tensor({2.0f, 3.0f})));
  const at::Tensor rows = at::full({5, 1}, 9.0);
  comm.all_to_all(rows, at::tensor({1.0f, 2.0f}).view({2, 1}), {4, 1, 0}, {1, 1, 0}).wait();
  EXPECT_TRUE(rows.view(-1).equal(at::tensor({1.0f, 2.0f, 1.0f, 2.0f, 1.0f})));
  comm.all_to_all(rows, at::zeros({0, 1}), {5, 0, 0}, {0, 0, 0}).wait();
  EXPECT_TRUE(rows.equal(at::zeros({5, 1})));
}

// The traffic of one rank of 64. Oracle: by hand.
TEST(CountingCommunicator, counts_a_rank_of_a_large_world) {
  const auto count = std::make_shared<TrafficCount>();
  CountingCommunicator comm(std::make_unique<FakeCommunicator>("shard", 63, 64), count);
  comm.all_gather(at::zeros({6400}, at::kBFloat16), at::zeros({100}, at::kBFloat16)).wait();
  comm.all_reduce(at::zeros({64 * 1024 + 1}, at::kByte), Reduction::sum).wait();
  const auto counts = count->snapshot();
  EXPECT_EQ(counts.at({"shard", "all_gather"}), (Traffic{1, 63 * 100 * 2}));
  EXPECT_EQ(counts.at({"shard", "all_reduce"}), (Traffic{1, 64 * 1024 + 1 - 1025 + 63 * 1025}));
}

}  // namespace
}  // namespace conclave
