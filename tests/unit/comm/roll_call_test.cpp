// What ranks learn of each other when they meet. Oracle: what each said.
#include "comm/roll_call.h"

#include <gtest/gtest.h>

#include <future>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "comm/foreign_text.h"

namespace conclave {
namespace {

TEST(RollCall, tells_every_rank_the_words_of_all_in_rank_order) {
  const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::HashStore>();
  const std::vector<std::string> said{"zero", "", "2:two\n3:"};
  std::vector<std::future<std::vector<std::string>>> heard;
  for (int rank = 2; rank >= 0; --rank)
    heard.push_back(
        std::async(std::launch::async, [&, rank] { return call_roll(*store, rank, 3, "test", said[rank]); }));
  for (auto& each : heard) EXPECT_EQ(each.get(), said);
}

TEST(RollCall, a_strangers_words_are_an_error) {
  const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::HashStore>();
  for (const char* text : {"", "1:a", "9:a1:b", "x:a", "1:a1:b1:c", ":", "99999999999:a", "1"}) {
    store->set("roll/test/all", text);
    EXPECT_THROW(call_roll(*store, 1, 2, "test", "b"), ForeignTextError) << text;
  }
  EXPECT_THROW(RankPlace::parse("no line feed"), ForeignTextError);
}

TEST(Hosts, are_numbered_by_their_first_rank) {
  const auto on = [](const char* host) { return RankPlace{host, {}}; };
  EXPECT_EQ(number_hosts({on("b"), on("a"), on("a"), on("c"), on("b")}), (std::vector<int>{0, 1, 1, 2, 0}));
}

TEST(Hosts, are_read_as_written) {
  const RankPlace here = RankPlace::of_this_process(), read = RankPlace::parse(here.text());
  EXPECT_EQ(read.host, here.host);
  EXPECT_EQ(read.cores.numbers, here.cores.numbers);
  EXPECT_FALSE(here.host.empty());
}

}  // namespace
}  // namespace conclave
