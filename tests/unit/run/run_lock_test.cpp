// Oracle: flock(2) and waitpid(2): processes of their own hold the lock and die.
#include "run/run_lock.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>
#include <csignal>

#include <optional>

#include "base/error.h"
#include "unit/checkpoint/thread_world.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A process that takes the lock, says so, and sleeps until it is killed.
pid_t start_holder(const std::filesystem::path& folder) {
  int said[2];
  EXPECT_EQ(::pipe(said), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const RunLock lock(folder);
    (void)!::write(said[1], "x", 1);
    for (;;) ::pause();
  }
  char letter = 0;
  EXPECT_EQ(::read(said[0], &letter, 1), 1);
  ::close(said[0]);
  ::close(said[1]);
  return child;
}

TEST(RunLock, keeps_a_second_run_out_and_names_the_first) {
  const TestFolder folder;
  const pid_t holder = start_holder(folder.path());
  EXPECT_THAT(message_of<UserError>([&] { RunLock second(folder.path()); }),
              AllOf(HasSubstr(folder.path().string()), HasSubstr("process " + std::to_string(holder) + " on ")));
  EXPECT_THAT(message_of<UserError>([&] { RunLock third(folder.path()); }), HasSubstr("process "));
  ::kill(holder, SIGKILL);  // as a machine that fails: nothing is put in order
  ::waitpid(holder, nullptr, 0);
  EXPECT_NO_THROW(RunLock(folder.path()));
}

TEST(RunLock, ends_with_its_object_and_is_of_one_folder) {
  const TestFolder one, two;
  std::optional<RunLock> first(std::in_place, one.path());
  EXPECT_NO_THROW(RunLock(two.path()));
  EXPECT_THROW(RunLock(one.path()), UserError);  // also within one process
  first.reset();
  EXPECT_NO_THROW(RunLock(one.path()));
}

}  // namespace
}  // namespace conclave
