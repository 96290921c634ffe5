// Every collective between processes against a plain computation: the value of element i of rank r's tensor is a
// formula of (r, i), so each rank knows alone what it must receive. Values are small integers, exact in every dtype, so
// equality is exact: no tolerance.
#include <ATen/ATen.h>

#include <cmath>
#include <random>

#include "comm/counting_communicator.h"
#include "comm/shapes.h"
#include "dist/world.h"

namespace conclave {
namespace {

using testing::run_ranks;

AxisGroup everyone(const World& world) {
  AxisGroup group;
  for (int rank = 0; rank < world.size(); ++rank) group.ranks.push_back(rank);
  group.index = world.rank();
  return group;
}

// [count]: (7 * i + 3 * rank + salt) modulo 13; sums over 4 ranks stay below 49, exact even in bf16 and uint8.
at::Tensor values(int rank, int64_t count, at::ScalarType dtype, int salt = 0) {
  return ((at::arange(count, at::kLong) * 7 + 3 * rank + salt) % 13).to(dtype);
}

at::Tensor poisoned(std::vector<int64_t> shape, at::ScalarType dtype) {
  return at::full(shape, 77, dtype);
}

const std::vector<int64_t> counts{0, 1, 17, 1000, 300'001};
const std::vector<at::ScalarType> dtypes{at::kFloat, at::kBFloat16, at::kDouble, at::kLong, at::kInt, at::kByte};

struct Ranks {
  int count;
  bool memory_link;  // or sockets
};
void PrintTo(const Ranks& ranks, std::ostream* out) {
  *out << ranks.count << (ranks.memory_link ? " ranks by memory" : " ranks by sockets");
}
void run_ranks_of(const Ranks& ranks, const testing::RankBody& body) {
  testing::RunOptions options;
  options.world.memory_link = ranks.memory_link;
  run_ranks(ranks.count, body, options);
}

class Collectives : public ::testing::TestWithParam<Ranks> {};
INSTANTIATE_TEST_SUITE_P(Worlds, Collectives,
                         ::testing::Values(Ranks{1, true}, Ranks{2, true}, Ranks{3, true}, Ranks{4, true},
                                           Ranks{2, false}, Ranks{3, false}, Ranks{4, false}));

TEST_P(Collectives, all_gather_concatenates_in_rank_order) {
  run_ranks_of(GetParam(), [](World& world) {
    const auto comm = world.communicator(everyone(world), "shard");
    for (const auto dtype : dtypes)
      for (const int64_t n : counts) {
        std::vector<at::Tensor> parts;
        for (int rank = 0; rank < world.size(); ++rank) parts.push_back(values(rank, n, dtype));
        const at::Tensor output = poisoned({world.size() * n}, dtype);
        comm->all_gather(output, parts[world.rank()]).wait();
        EXPECT_TRUE(output.equal(at::cat(parts))) << dtype << " " << n;
        const at::Tensor in_place = poisoned({world.size() * n}, dtype);
        const at::Tensor own = in_place.narrow(0, world.rank() * n, n);
        own.copy_(parts[world.rank()]);
        comm->all_gather(in_place, own).wait();
        EXPECT_TRUE(in_place.equal(at::cat(parts))) << "in place " << dtype << " " << n;
      }
  });
}

TEST_P(Collectives, reduce_scatter_sums_each_ranks_part) {
  run_ranks_of(GetParam(), [](World& world) {
    const auto comm = world.communicator(everyone(world), "shard");
    for (const auto dtype : dtypes)
      for (const int64_t n : counts) {
        at::Tensor expected = at::zeros({n}, at::kLong);
        for (int rank = 0; rank < world.size(); ++rank)
          expected += values(rank, world.size() * n, at::kLong).narrow(0, world.rank() * n, n);
        const at::Tensor input = values(world.rank(), world.size() * n, dtype);
        const at::Tensor output = poisoned({n}, dtype);
        comm->reduce_scatter(output, input).wait();
        EXPECT_TRUE(output.equal(expected.to(dtype))) << dtype << " " << n;
        EXPECT_TRUE(input.equal(values(world.rank(), world.size() * n, dtype))) << "the input must stay";
      }
  });
}

TEST_P(Collectives, all_reduce_sums_and_maximizes) {
  run_ranks_of(GetParam(), [](World& world) {
    const auto comm = world.communicator(everyone(world), "world");
    for (const auto dtype : dtypes)
      for (const int64_t n : counts) {
        at::Tensor sum = at::zeros({n}, at::kLong), largest = at::zeros({n}, at::kLong);
        for (int rank = 0; rank < world.size(); ++rank) {
          sum += values(rank, n, at::kLong);
          largest = at::maximum(largest, values(rank, n, at::kLong));
        }
        const at::Tensor summed = values(world.rank(), n, dtype), maximized = values(world.rank(), n, dtype);
        Pending first = comm->all_reduce(summed);
        comm->all_reduce(maximized, Reduction::max).wait();
        first.wait();
        EXPECT_TRUE(summed.equal(sum.to(dtype))) << dtype << " " << n;
        EXPECT_TRUE(maximized.equal(largest.to(dtype))) << dtype << " " << n;
      }
  });
}

// Oracle: the ranks' bits are compared by gathering them, and the value with a sum in rank order in double, rounded to
// float step by step.
TEST_P(Collectives, all_reduce_of_rounded_sums_has_the_same_bits_on_every_rank) {
  run_ranks_of(GetParam(), [](World& world) {
    const auto comm = world.communicator(everyone(world), "world");
    for (const int64_t n : {5, 1000, 100'000}) {
      std::vector<at::Tensor> inputs;
      for (int rank = 0; rank < world.size(); ++rank)
        inputs.push_back(at::sin(at::arange(n, at::kDouble) * (rank + 1.7)).to(at::kFloat) * std::pow(10.0, rank));
      at::Tensor expected = inputs[0].clone();
      for (int rank = 1; rank < world.size(); ++rank)
        expected = (expected.to(at::kDouble) + inputs[rank].to(at::kDouble)).to(at::kFloat);
      const at::Tensor sum = inputs[world.rank()].clone();
      comm->all_reduce(sum).wait();
      EXPECT_TRUE(sum.equal(expected)) << n;
      const at::Tensor all = at::empty({world.size() * n}, at::kFloat);
      comm->all_gather(all, sum).wait();
      for (int rank = 0; rank < world.size(); ++rank)
        EXPECT_TRUE(all.narrow(0, rank * n, n).equal(sum)) << n << " rank " << rank;
    }
  });
}

TEST_P(Collectives, a_rank_with_nan_makes_sum_and_maximum_nan_everywhere) {
  run_ranks_of(GetParam(), [](World& world) {
    const auto comm = world.communicator(everyone(world), "world");
    for (const auto dtype : {at::kFloat, at::kBFloat16, at::kDouble})
      for (const auto reduction : {Reduction::sum, Reduction::max}) {
        const at::Tensor tensor = at::ones({3}, dtype);
        if (world.rank() == world.size() - 1) tensor[1] = std::nan("");
        comm->all_reduce(tensor, reduction).wait();
        EXPECT_EQ(tensor.isnan().sum().item<int64_t>(), 1) << dtype;
        EXPECT_TRUE(tensor[1].isnan().item<bool>()) << dtype;
      }
  });
}

TEST_P(Collectives, broadcast_copies_the_roots) {
  run_ranks_of(GetParam(), [](World& world) {
    const auto comm = world.communicator(everyone(world), "world");
    for (int root = 0; root < world.size(); ++root)
      for (const int64_t n : counts) {
        const at::Tensor tensor = values(world.rank(), n, at::kFloat);
        comm->broadcast(tensor, root).wait();
        EXPECT_TRUE(tensor.equal(values(root, n, at::kFloat))) << root << " " << n;
      }
    comm->barrier();
  });
}

// Random splits, among them ranks that send or receive nothing, nothing at all, and everything from one rank to
// another. Oracle: a row names its source, its destination and its place, so each rank knows every row it must hold.
TEST_P(Collectives, all_to_all_moves_every_row_to_its_place) {
  run_ranks_of(GetParam(), [](World& world) {
    const auto comm = world.communicator(everyone(world), "expert");
    const int size = world.size(), me = world.rank();
    const unsigned seed = 20240607;
    std::mt19937 random(seed);  // the same on every rank: all know the whole table
    for (int round = 0; round < 40; ++round) {
      std::vector<std::vector<int64_t>> rows(size, std::vector<int64_t>(size));  // [source][destination]
      for (auto& row : rows)
        for (auto& count : row) count = random() % 3 == 0 ? 0 : random() % (round < 30 ? 40 : 5000);
      if (round == 0)
        for (auto& row : rows) std::fill(row.begin(), row.end(), 0);
      if (round == 1)
        for (auto& row : rows) std::fill(row.begin(), row.end(), 0), row[size - 1] = 9;
      if (round == 2) std::fill(rows[size - 1].begin(), rows[size - 1].end(), 0);
      const int64_t width = round % 3 == 0 ? 1 : 5;
      const auto make = [&](int source, int destination) {
        const at::Tensor place = at::arange(rows[source][destination], at::kLong).unsqueeze(1) * 100;
        return (place + source * 10 + destination + at::zeros({1, width}, at::kLong)).to(at::kInt);
      };
      std::vector<at::Tensor> sent, expected;
      std::vector<int64_t> input_splits, output_splits;
      for (int peer = 0; peer < size; ++peer) {
        sent.push_back(make(me, peer));
        expected.push_back(make(peer, me));
        input_splits.push_back(rows[me][peer]);
        output_splits.push_back(rows[peer][me]);
      }
      const at::Tensor input = at::cat(sent), wanted = at::cat(expected);
      const at::Tensor output = poisoned({wanted.size(0), width}, at::kInt);
      comm->all_to_all(output, input, output_splits, input_splits).wait();
      EXPECT_TRUE(output.equal(wanted)) << "round " << round << ", seed " << seed;
    }
  });
}

// Calls of two communicators are issued all at once, of all kinds, small and large, and waited for backwards on odd
// ranks.
TEST_P(Collectives, many_in_flight_do_not_mix) {
  run_ranks_of(GetParam(), [](World& world) {
    const auto a = world.communicator(everyone(world), "shard"), b = world.communicator(everyone(world), "replica");
    const int size = world.size(), me = world.rank();
    for (int round = 0; round < 5; ++round) {
      std::vector<Pending> pending;
      std::vector<std::function<void()>> checks;
      for (int call = 0; call < 6; ++call) {
        const int64_t n = call % 2 == 0 ? 100'003 : 11;
        Communicator& comm = call % 3 == 0 ? *a : *b;
        const at::Tensor gathered = poisoned({size * n}, at::kFloat), own = values(me, n, at::kFloat, call);
        pending.push_back(comm.all_gather(gathered, own));
        const at::Tensor reduced = values(me, n, at::kFloat, call);
        pending.push_back(comm.all_reduce(reduced));
        const at::Tensor scattered = poisoned({n}, at::kFloat);
        pending.push_back(comm.reduce_scatter(scattered, values(me, size * n, at::kFloat, call)));
        checks.push_back([=] {
          at::Tensor sum = at::zeros({n}), part = at::zeros({n});
          for (int rank = 0; rank < size; ++rank) {
            EXPECT_TRUE(gathered.narrow(0, rank * n, n).equal(values(rank, n, at::kFloat, call))) << call;
            sum += values(rank, n, at::kFloat, call);
            part += values(rank, size * n, at::kFloat, call).narrow(0, me * n, n);
          }
          EXPECT_TRUE(reduced.equal(sum)) << call;
          EXPECT_TRUE(scattered.equal(part)) << call;
        });
      }
      if (me % 2 == 1) std::reverse(pending.begin(), pending.end());
      for (Pending& one : pending) one.wait();
      for (const auto& check : checks) check();
    }
  });
}

// Oracle: the bytes by hand.
TEST(CountedCollectives, bytes_are_those_sent_to_others) {
  run_ranks(3, [](World& world) {
    const auto count = std::make_shared<TrafficCount>();
    CountingCommunicator comm(world.communicator(everyone(world), "expert"), count);
    comm.all_gather(at::empty({300}), at::zeros({100})).wait();
    comm.reduce_scatter(at::empty({10}, at::kBFloat16), at::zeros({30}, at::kBFloat16)).wait();
    std::vector<int64_t> to(3, world.rank()), from{0, 1, 2};
    comm.all_to_all(at::empty({3, 4}), at::empty({3 * world.rank(), 4}), from, to).wait();
    comm.all_reduce(at::zeros({8}), Reduction::sum).wait();
    comm.all_reduce(at::zeros({60'001}), Reduction::sum).wait();
    comm.broadcast(at::zeros({5}), 1).wait();
    const auto counts = count->reset();
    const int64_t own = world.rank() == 2 ? 20'001 : 20'000;
    EXPECT_EQ(counts.at({"expert", "all_gather"}), (Traffic{1, 2 * 100 * 4}));
    EXPECT_EQ(counts.at({"expert", "reduce_scatter"}), (Traffic{1, 2 * 10 * 2}));
    EXPECT_EQ(counts.at({"expert", "all_to_all"}), (Traffic{1, 2 * world.rank() * 4 * 4}));
    EXPECT_EQ(counts.at({"expert", "all_reduce"}), (Traffic{2, 2 * 8 * 4 + (60'001 - own + 2 * own) * 4}));
    EXPECT_EQ(counts.at({"expert", "broadcast"}), (Traffic{1, world.rank() == 1 ? 2 * 5 * 4 : 0}));
    EXPECT_TRUE(count->snapshot().empty());
  });
}

// Axes of a 2 x 2 mesh at the same time: each rank talks with its row and its column.
TEST(Groups, rows_and_columns_of_a_mesh_are_apart) {
  run_ranks(4, [](World& world) {
    const int row = world.rank() / 2, column = world.rank() % 2;
    const auto expert = world.communicator({{2 * row, 2 * row + 1}, column}, "expert");
    const auto expert_shard = world.communicator({{column, column + 2}, row}, "expert_shard");
    const at::Tensor in_row = at::empty({2}, at::kInt), in_column = at::empty({2}, at::kInt),
                     own = at::full({1}, world.rank(), at::kInt);
    Pending first = expert->all_gather(in_row, own);
    expert_shard->all_gather(in_column, own).wait();
    first.wait();
    EXPECT_TRUE(in_row.equal(at::tensor({2 * row, 2 * row + 1}, at::kInt)));
    EXPECT_TRUE(in_column.equal(at::tensor({column, column + 2}, at::kInt)));
  });
}

}  // namespace
}  // namespace conclave
