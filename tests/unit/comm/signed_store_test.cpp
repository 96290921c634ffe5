// Oracle: Python's hmac module for the hash; for the rest, a stranger who writes to the store underneath.
#include "comm/signed_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include "base/error.h"
#include "comm/foreign_text.h"
#include "comm/notice_board.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

struct SignedStoreTest : ::testing::Test {
  c10::intrusive_ptr<c10d::Store> network = c10::make_intrusive<c10d::HashStore>();
  c10::intrusive_ptr<SignedStore> store = c10::make_intrusive<SignedStore>(network, "a secret of sixteen");

  std::string refusal(const std::string& key) {
    try {
      return "read: " + store->get_to_str(key);
    } catch (const ForeignTextError& error) {
      return error.what();
    }
  }
};

// python3 -c "import hmac; print(hmac.new(b'a secret of sixteen', b'3:key5:value', 'sha256').hexdigest())"
TEST_F(SignedStoreTest, carries_the_hash_that_others_compute) {
  store->set("key", "value");
  std::string hexadecimal;
  for (const char byte : network->get_to_str("key").substr(0, 32))
    hexadecimal += fmt::format("{:02x}", static_cast<uint8_t>(byte));
  EXPECT_EQ(hexadecimal, "832f5c432ed733b2787ec1371589e93f36640f74206d00d1f7c3bd48d1298c49");
  EXPECT_EQ(network->get_to_str("key").substr(32), "value");
  EXPECT_EQ(store->get_to_str("key"), "value");
}

TEST_F(SignedStoreTest, believes_nobody_without_the_secret) {
  network->set("verdict", "\nrank 1 is lost\x1b]0;owned\x07");
  EXPECT_THAT(refusal("verdict"), HasSubstr("which no rank of this job writes"));
  EXPECT_THAT(refusal("verdict"), HasSubstr("\\x1b]0;owned\\x07")) << "escaped";
  store->set("rank/1", "beat 1");
  network->set("rank/2", network->get_to_str("rank/1"));
  EXPECT_THAT(refusal("rank/2"), HasSubstr("rank/2")) << "another key's value, with its hash";
  auto text = network->get_to_str("rank/1");
  for (const size_t at : {size_t{0}, text.size() - 1}) {
    auto changed = text;
    changed[at] ^= 1;
    network->set("rank/1", changed);
    EXPECT_THAT(refusal("rank/1"), HasSubstr("which no rank"));
  }
  c10::make_intrusive<SignedStore>(network, "another secret of 16")->set("rank/1", "beat 1");
  EXPECT_THAT(refusal("rank/1"), HasSubstr("which no rank"));
}

TEST_F(SignedStoreTest, the_first_verdict_stands) {
  EXPECT_EQ(store->compareSet("verdict", "", "first"), "first");
  EXPECT_EQ(store->compareSet("verdict", "", "second"), "first");
  EXPECT_EQ(store->compareSet("verdict", "first", "third"), "third");
}

// What the watchdog needs of a store: no counter.
TEST_F(SignedStoreTest, carries_a_notice_board) {
  using enum NoticeBoard::Milestone;
  NoticeBoard board(store->clone());
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_FALSE(board.all_reached(started, 0, 3));
    board.reach(started, rank);
  }
  EXPECT_FALSE(board.all_reached(started, 2, 3)) << "rank 0 tells the others";
  EXPECT_TRUE(board.all_reached(started, 0, 3));
  EXPECT_TRUE(board.all_reached(started, 2, 3));
  EXPECT_FALSE(board.all_reached(finished, 0, 3));
  network->set("finished/0", "reached");
  network->set("finished/1", "reached");
  network->set("finished/2", "reached");
  EXPECT_THROW(board.all_reached(finished, 0, 3), ForeignTextError);
}

TEST(NoticeBoardText, of_a_stranger_is_named_and_fit_for_a_terminal) {
  const c10::intrusive_ptr<c10d::Store> store = c10::make_intrusive<c10d::HashStore>();
  NoticeBoard board(store);
  store->set("rank/1", "\x80\x04 a pickle \x1b]0;owned\x07");
  try {
    board.report_of(1);
    FAIL() << "garbage is a report";
  } catch (const ForeignTextError& error) {
    EXPECT_THAT(error.what(),
                HasSubstr("the report of rank 1 in the job's store is \"\\x80\\x04 a pickle \\x1b]0;owned"));
  }
  store->set("verdict", "0\nthe end\x1b[2J\nof it");
  EXPECT_EQ(board.verdict()->text, "the end\\x1b[2J\\nof it");
  store->set("verdict", "no line feed");
  EXPECT_THROW(board.verdict(), ForeignTextError);
}

class SecretFile : public ::testing::Test {
 protected:
  const std::filesystem::path file_ =
      std::filesystem::temp_directory_path() / ("conclave_secret_" + std::to_string(::getpid()));
  void TearDown() override {
    unsetenv("CONCLAVE_SECRET_FILE");
    std::filesystem::remove(file_);
  }
  std::string read(const std::string& content, mode_t mode = 0600) {
    std::ofstream(file_) << content;
    ::chmod(file_.c_str(), mode);
    return read_named(file_);
  }
  static std::string read_named(const std::string& name) {
    setenv("CONCLAVE_SECRET_FILE", name.c_str(), 1);
    try {
      return secret_of_job().value_or("none");
    } catch (const UserError& error) {
      return error.what();
    }
  }
};

TEST_F(SecretFile, is_read_without_its_line_end) {
  EXPECT_EQ(secret_of_job(), std::nullopt);
  EXPECT_EQ(read("0123456789abcdef\n"), "0123456789abcdef");
}

TEST_F(SecretFile, that_is_no_secret_is_refused) {
  EXPECT_THAT(read("short\n"), HasSubstr("which holds 5 bytes, and a secret needs 16"));
  EXPECT_THAT(read("0123456789abcdef", 0644), HasSubstr("which other users may read (mode 644). Run: chmod 600"));
  EXPECT_THAT(read_named("/no/such/file"), HasSubstr("No such file"));
  EXPECT_THAT(read_named("/dev/zero"), HasSubstr("which is not a file"));
}

}  // namespace
}  // namespace conclave
