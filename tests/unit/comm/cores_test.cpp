// How ranks divide the cores of a host. Oracle: counting by hand.
#include "comm/cores.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <cstdlib>
#include <stdexcept>

namespace conclave {
namespace {

Cores bound_to(std::vector<int> numbers, double quota = 0, const std::string& group = "") {
  return {std::move(numbers), quota, group};
}

TEST(Threads, ranks_bound_to_the_same_cores_divide_them) {
  const std::vector<Cores> ranks(2, bound_to({0, 1, 2, 3}));
  EXPECT_EQ(threads_of(ranks, 0, 0), 2);
  EXPECT_EQ(threads_of({bound_to({0, 1, 2, 3})}, 0, 0), 4);
  EXPECT_EQ(threads_of(std::vector<Cores>(8, bound_to({0, 1})), 7, 0), 1) << "never none";
}

TEST(Threads, a_rank_with_cores_of_its_own_has_them_all) {
  const std::vector<Cores> ranks{bound_to({0, 1}), bound_to({2, 3, 4})};
  EXPECT_EQ(threads_of(ranks, 0, 0), 2);
  EXPECT_EQ(threads_of(ranks, 1, 0), 3);
}

TEST(Threads, the_launchers_grant_lowers_but_does_not_raise_them) {
  EXPECT_EQ(threads_of({bound_to({5})}, 0, 16), 1) << "bound to one core, whatever SLURM_CPUS_PER_TASK says";
  EXPECT_EQ(threads_of({bound_to({0, 1, 2, 3})}, 0, 3), 3);
}

TEST(Threads, a_quota_of_the_control_group_counts) {
  EXPECT_EQ(threads_of({bound_to({0, 1, 2, 3}, 2.5, "/pod")}, 0, 0), 2);
  EXPECT_EQ(threads_of({bound_to({0, 1, 2, 3}, 0.5, "/pod")}, 0, 0), 1);
  const std::vector<Cores> sharing(2, bound_to({0, 1, 2, 3, 4, 5, 6, 7}, 4, "/job"));
  EXPECT_EQ(threads_of(sharing, 0, 0), 2);
  const std::vector<Cores> apart{bound_to({0, 1, 2, 3, 4, 5, 6, 7}, 3, "/a"),
                                 bound_to({0, 1, 2, 3, 4, 5, 6, 7}, 3, "/b")};
  EXPECT_EQ(threads_of(apart, 0, 0), 3);
}

TEST(Threads, omp_num_threads_counts_but_for_torchruns_1) {
  setenv("OMP_NUM_THREADS", "3", 1);
  EXPECT_EQ(threads_asked_for(), 3);
  setenv("OMP_NUM_THREADS", "1", 1);
  EXPECT_EQ(threads_asked_for(), 1);
  setenv("TORCHELASTIC_RUN_ID", "none", 1);
  EXPECT_EQ(threads_asked_for(), 0);
  unsetenv("TORCHELASTIC_RUN_ID");
  unsetenv("OMP_NUM_THREADS");
  EXPECT_EQ(threads_asked_for(), 0);
}

TEST(CoresText, is_read_as_written) {
  for (const Cores& cores : {bound_to({0, 7, 190}, 2.5, "/a group/with blanks"), bound_to({3})}) {
    const Cores read = Cores::parse(cores.text());
    EXPECT_EQ(read.numbers, cores.numbers);
    EXPECT_EQ(read.quota, cores.quota);
    EXPECT_EQ(read.quota_group, cores.quota_group);
  }
  for (const char* text : {"", "2 0", "1 x 0 ", "many"}) EXPECT_THROW(Cores::parse(text), std::runtime_error) << text;
}

// Oracle: the kernel's own count.
TEST(CoresText, are_those_that_this_process_is_bound_to) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  EXPECT_EQ(Cores::of_this_process().numbers.size(), static_cast<size_t>(CPU_COUNT(&before)));
  const int core = Cores::of_this_process().numbers.back();
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(Cores::of_this_process().numbers, std::vector<int>{core});
  sched_setaffinity(0, sizeof before, &before);
}

}  // namespace
}  // namespace conclave
