// Which sockets a world of one host opens. Oracle: the kernel's lists of sockets.
#include <ATen/ATen.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "dist/world.h"

namespace conclave {
namespace {

// Of this process, the local addresses of TCP sockets that listen, as the kernel writes them.
std::vector<std::string> addresses_listened_on() {
  std::set<std::string> own;
  for (const auto& file : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code closed_meanwhile;
    const std::string target = std::filesystem::read_symlink(file.path(), closed_meanwhile).string();
    if (target.starts_with("socket:[")) own.insert(target.substr(8, target.size() - 9));
  }
  std::vector<std::string> addresses;
  for (const char* table : {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
    std::ifstream lines(table);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string number, local, remote, state, skipped, inode;
      words >> number >> local >> remote >> state;
      for (int i = 0; i < 5; ++i) words >> skipped;
      words >> inode;
      if (state == "0A" && own.contains(inode)) addresses.push_back(local);
    }
  }
  return addresses;
}

void sum_over_world(World& world) {
  AxisGroup group{{0, 1, 2}, world.rank()};
  const auto comm = world.communicator(group, "world");
  const at::Tensor sum = at::full({1000}, world.rank() + 1.0);
  comm->all_reduce(sum).wait();
  EXPECT_TRUE(sum.eq(6).all().item<bool>());
}

TEST(Sockets, ranks_that_read_each_others_memory_open_no_port) {
  testing::run_ranks(3, [](World& world) {
    sum_over_world(world);
    EXPECT_THAT(addresses_listened_on(), ::testing::IsEmpty());
  });
}

TEST(Sockets, those_of_one_host_are_on_loopback) {
  testing::RunOptions options;
  options.world.memory_link = false;
  testing::run_ranks(
      3,
      [](World& world) {
        sum_over_world(world);
        const auto addresses = addresses_listened_on();
        EXPECT_THAT(addresses, ::testing::Not(::testing::IsEmpty()));
        EXPECT_THAT(addresses, ::testing::Each(::testing::StartsWith("0100007F:")));
      },
      options);
}

// Ranks decide by what all of them reach, not by what each one does.
TEST(Sockets, one_rank_without_a_link_makes_all_use_sockets) {
  testing::RunOptions options;
  options.world.choose = [](const Process& process, WorldOptions& chosen) { chosen.memory_link = process.rank != 1; };
  testing::run_ranks(
      3,
      [](World& world) {
        sum_over_world(world);
        EXPECT_THAT(addresses_listened_on(), ::testing::Not(::testing::IsEmpty()));
      },
      options);
}

}  // namespace
}  // namespace conclave
