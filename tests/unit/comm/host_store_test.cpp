// The store of one host: what c10d's interface promises, who gets in, and what becomes of garbage.
#include "comm/host_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <future>
#include <random>
#include <system_error>
#include <thread>
#include <torch/csrc/distributed/c10d/HashStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>

#include "comm/host_store_server.h"

namespace conclave {
namespace {

using namespace std::chrono_literals;

std::string new_name() {
  static std::atomic<int> count = 0;
  return "host_store_test/" + std::to_string(::getpid()) + "/" + std::to_string(++count);
}

struct HostStoreTest : ::testing::Test {
  const std::string name = new_name();
  std::shared_ptr<HostStoreServer> server = std::make_shared<HostStoreServer>(name);
  c10::intrusive_ptr<HostStore> store = c10::make_intrusive<HostStore>(name, server, 5s);
};

// Oracle: c10d's own HashStore.
TEST_F(HostStoreTest, does_what_c10ds_stores_do) {
  const auto oracle = c10::make_intrusive<c10d::HashStore>();
  const auto both = [&](const auto& call) { EXPECT_EQ(call(*store), call(*oracle)); };
  const std::string binary("\0\n\xff", 3);
  both([](c10d::Store& s) { return s.check({"a"}); });
  both([&](c10d::Store& s) { return s.set("a", binary), s.get_to_str("a"); });
  both([](c10d::Store& s) { return s.check({"a"}); });
  both([](c10d::Store& s) { return s.check({"a", "b"}); });
  both([](c10d::Store& s) { return s.add("n", 5); });
  both([](c10d::Store& s) { return s.add("n", -7); });
  both([](c10d::Store& s) { return s.get_to_str("n"); });
  both([](c10d::Store& s) { return s.compareSet("v", "", "first"); });
  both([](c10d::Store& s) { return s.compareSet("v", "", "second"); });
  both([](c10d::Store& s) { return s.compareSet("v", "first", "third"); });
  both([](c10d::Store& s) { return s.getNumKeys(); });
  both([](c10d::Store& s) { return s.deleteKey("a"); });
  both([](c10d::Store& s) { return s.deleteKey("a"); });
  both([](c10d::Store& s) { return s.append("v", std::vector<uint8_t>{'!'}), s.get_to_str("v"); });
  both([](c10d::Store& s) { return s.multiSet({"x", "y"}, {{1}, {}}), s.multiGet({"y", "x"}); });
}

TEST_F(HostStoreTest, waits_for_a_value_and_gives_up_in_time) {
  auto other = store->clone();
  auto value = std::async(std::launch::async, [&] { return other->get_to_str("late"); });
  std::this_thread::sleep_for(50ms);
  store->set("late", "here");
  EXPECT_EQ(value.get(), "here");
  EXPECT_THROW(other->wait({"never"}, 50ms), std::exception);
  store->set("never", "now");
  EXPECT_EQ(other->get_to_str("late"), "here") << "the answer that came too late is not taken for another one's";
}

TEST_F(HostStoreTest, carries_large_values_between_many_at_once) {
  std::vector<std::future<bool>> done;
  const std::string large(3 << 20, 'x');
  for (int i = 0; i < 8; ++i)
    done.push_back(std::async(std::launch::async, [&, i] {
      const auto own = store->clone();
      own->set("large/" + std::to_string(i), large);
      return own->get_to_str("large/" + std::to_string((i + 1) % 8)) == large;
    }));
  for (auto& each : done) EXPECT_TRUE(each.get());
}

TEST_F(HostStoreTest, a_name_is_served_once) {
  try {
    HostStoreServer second(name);
    FAIL() << "two servers of one name";
  } catch (const std::system_error& error) {
    EXPECT_EQ(error.code().value(), EADDRINUSE);
  }
}

TEST_F(HostStoreTest, an_ended_server_is_an_error) {
  const auto client = c10::make_intrusive<HostStore>(name, nullptr, 500ms);
  client->set("a", "b");
  store.reset();
  server.reset();
  EXPECT_THROW(client->get("a"), std::exception);
}

TEST_F(HostStoreTest, garbage_ends_its_own_connection_alone) {
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    const HostSocket stranger = connect_on_host(name, std::chrono::steady_clock::now() + 1s);
    std::string bytes(random() % 64 + 1, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    if (i % 2 == 0) bytes[2] = bytes[3] = 0;  // a length that may be believed
    ::send(stranger.file(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  store->set("a", "still here");
  EXPECT_EQ(store->get_to_str("a"), "still here");
}

// Oracle: the kernel, which lets another user's process connect to a name, and says whose it is.
TEST_F(HostStoreTest, another_users_process_gets_no_answer) {
  if (::getuid() != 0) GTEST_SKIP() << "only root may become another user";
  // Names hold the user's number, and nothing keeps a stranger from using another one's.
  const pid_t child = ::fork();
  if (child == 0) {
    const std::string path = std::string(1, '\0') + "conclave/0/" + name;
    if (::setuid(65534) != 0) ::_exit(9);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::copy(path.begin(), path.end(), address.sun_path);
    const int file = ::socket(AF_UNIX, SOCK_STREAM, 0);
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
    if (::connect(file, reinterpret_cast<sockaddr*>(&address), length) != 0) ::_exit(1);
    const std::string request = encode({HostMessage::Kind::set, {"verdict", "\nowned"}});
    ::send(file, request.data(), request.size(), MSG_NOSIGNAL);
    char answer = 0;
    ::_exit(::recv(file, &answer, 1, 0) > 0 ? 2 : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_FALSE(store->check({"verdict"}));
}

}  // namespace
}  // namespace conclave
