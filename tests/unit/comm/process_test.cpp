#include "comm/process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "base/error.h"
#include "comm/mpi_process.h"
#include "comm/network_address.h"
#include "comm/rendezvous.h"
#include "comm/slurm_process.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

// Oracle: the variables as torchrun, srun (Slurm 23) and mpirun (Open MPI 4) set them, by their documentation.
const Variables torchrun{{"RANK", "5"},
                         {"WORLD_SIZE", "8"},
                         {"LOCAL_RANK", "1"},
                         {"LOCAL_WORLD_SIZE", "4"},
                         {"GROUP_RANK", "1"},
                         {"MASTER_ADDR", "host0"},
                         {"MASTER_PORT", "29400"},
                         {"TORCHELASTIC_RESTART_COUNT", "2"},
                         {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                         {"TORCHELASTIC_RUN_ID", "none"}};
const Variables srun{{"SLURM_PROCID", "9"},
                     {"SLURM_NTASKS", "12"},
                     {"SLURM_LOCALID", "1"},
                     {"SLURM_NODEID", "2"},
                     {"SLURM_STEP_ID", "0"},
                     {"SLURM_TASKS_PER_NODE", "4(x3)"},
                     {"SLURM_JOB_ID", "123456"},
                     {"SLURM_JOB_NODELIST", "gpu[07-09]"},
                     {"SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"},
                     {"SLURM_CPUS_PER_TASK", "6"}};
const Variables mpirun{{"OMPI_COMM_WORLD_RANK", "1"},
                       {"OMPI_COMM_WORLD_SIZE", "2"},
                       {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                       {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                       {"MASTER_PORT", "31000"}};
// What Kubeflow's PyTorchJob gives its pods, one rank each.
const Variables pod{{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "job-master-0"}, {"MASTER_PORT", "23456"}};

class Environment : public ::testing::Test {
 protected:
  void SetUp() override { clear(); }
  void TearDown() override { clear(); }

  static void clear() {
    for (const auto* variables : {&torchrun, &srun, &mpirun})
      for (const auto& [name, value] : *variables) unsetenv(name.c_str());
    for (const char* name : {"CONCLAVE_MEETING",
                             "FLUX_TASK_RANK",
                             "FOO_RANK",
                             "MPI_LOCALNRANKS",
                             "MPI_LOCALRANKID",
                             "MV2_COMM_WORLD_LOCAL_RANK",
                             "MV2_COMM_WORLD_LOCAL_SIZE",
                             "MV2_COMM_WORLD_RANK",
                             "MV2_COMM_WORLD_SIZE",
                             "NODE_RANK",
                             "PALS_RANKID",
                             "PMIX_NAMESPACE",
                             "PMIX_RANK",
                             "PMI_RANK",
                             "PMI_SIZE",
                             "SLURM_PTY_PORT",
                             "SLURM_RESTART_COUNT",
                             "ENVIRONMENT",
                             "SLURM_STEPID",
                             "SLURM_STEP_NUM_TASKS",
                             "SLURM_STEP_TASKS_PER_NODE",
                             "SLURM_NTASKS_PER_NODE",
                             "SLURM_STEP_NODELIST"})
      unsetenv(name);
  }
  // `changes` go over `variables`; an empty value unsets.
  static Process read(Variables variables, const Variables& changes = {}, bool starts_ranks = false) {
    clear();
    for (const auto& [name, value] : changes) variables[name] = value;
    for (const auto& [name, value] : variables)
      if (!value.empty()) setenv(name.c_str(), value.c_str(), 1);
    return process_from_environment(starts_ranks);
  }
  static std::string refusal(const Variables& variables, const Variables& changes) {
    try {
      read(variables, changes);
    } catch (const UserError& error) {
      return error.what();
    }
    return "accepted";
  }
};

TEST_F(Environment, without_a_launcher_is_a_world_of_one) {
  const Process process = read({});
  EXPECT_TRUE(process.is_single());
  EXPECT_EQ(process.rank, 0);
  EXPECT_EQ(process.launcher, Launcher::none);
  EXPECT_EQ(connect_store(process, std::chrono::seconds(1)), nullptr);
}

TEST_F(Environment, torchrun_is_understood) {
  const Process process = read(torchrun);
  EXPECT_EQ(process.launcher, Launcher::torchrun);
  EXPECT_EQ(process.rank, 5);
  EXPECT_EQ(process.world_size, 8);
  EXPECT_EQ(process.local_rank, 1);
  EXPECT_EQ(process.local_world_size, 4);
  EXPECT_EQ(process.master_address, "host0");
  EXPECT_EQ(process.master_port, 29400);
  EXPECT_EQ(process.restart_count, 2);
  EXPECT_TRUE(process.launcher_serves_store);
  EXPECT_FALSE(process.is_one_host());
}

TEST_F(Environment, pytorchs_four_variables_are_enough) {
  const Process process = read(pod);
  EXPECT_EQ(process.rank, 1);
  EXPECT_EQ(process.world_size, 2);
  EXPECT_EQ(process.master_address, "job-master-0");
  EXPECT_EQ(process.master_port, 23456);
  EXPECT_FALSE(process.place_is_known) << "the ranks find out who shares a host when they meet";
  EXPECT_FALSE(process.is_one_host());
  EXPECT_TRUE(process.meeting.empty()) << "not on this host alone";
  EXPECT_FALSE(read(pod, {{"LOCAL_RANK", "1"}}).place_is_known);
  EXPECT_TRUE(read(pod, {{"WORLD_SIZE", "1"}, {"RANK", "0"}}).is_single());
}

TEST_F(Environment, ranks_of_one_host_meet_without_a_port) {
  const Variables here{{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "8"}, {"RANK", "1"}};
  const Process process = read(torchrun, here);
  EXPECT_FALSE(process.meeting.empty());
  EXPECT_FALSE(process.launcher_serves_store) << "torchrun's own is open to everybody";
  EXPECT_TRUE(read(torchrun).meeting.empty()) << "two hosts";
  Variables next = here;
  next["TORCHELASTIC_RESTART_COUNT"] = "3";
  EXPECT_NE(read(torchrun, next).meeting, process.meeting) << "a restart is a new job";
  EXPECT_FALSE(
      read(srun, {{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "1"}, {"SLURM_TASKS_PER_NODE", "4"}, {"SLURM_NODEID", "0"}})
          .meeting.empty());
}

TEST_F(Environment, an_ipv6_address_may_stand_in_brackets) {
  EXPECT_EQ(read(pod, {{"MASTER_ADDR", "[::1]"}}).master_address, "::1");
  EXPECT_EQ(read(pod, {{"MASTER_ADDR", "::1"}}).master_address, "::1");
  EXPECT_THAT(describe_store(read(pod, {{"MASTER_ADDR", "[::1]"}})), HasSubstr("the store at [::1]:23456"));
}

TEST_F(Environment, ranks_of_this_programs_launcher_know_their_place) {
  Variables variables = pod;  // left by another launcher
  variables.insert(srun.begin(), srun.end());
  const Process process = read(variables, {{"CONCLAVE_MEETING", "abc"}, {"RANK", "1"}, {"WORLD_SIZE", "2"}});
  EXPECT_EQ(process.launcher, Launcher::conclave);
  EXPECT_EQ(process.meeting, "abc");
  EXPECT_EQ(process.local_rank, 1);
  EXPECT_TRUE(process.is_one_host());
}

TEST_F(Environment, torchrun_inside_slurm_wins) {
  Variables both = srun;
  both.insert(torchrun.begin(), torchrun.end());
  EXPECT_EQ(read(both).launcher, Launcher::torchrun);
}

TEST_F(Environment, slurm_is_understood) {
  const Process process = read(srun);
  EXPECT_EQ(process.launcher, Launcher::slurm);
  EXPECT_EQ(process.rank, 9);
  EXPECT_EQ(process.world_size, 12);
  EXPECT_EQ(process.local_rank, 1);
  EXPECT_EQ(process.local_world_size, 4);
  EXPECT_EQ(process.master_address, "gpu07");
  EXPECT_GE(process.master_port, 10000);
  EXPECT_LT(process.master_port, 30000);
  EXPECT_EQ(process.cpus_per_rank, 6);
  EXPECT_FALSE(process.launcher_serves_store);
  EXPECT_EQ(read(srun, {{"SLURM_PROCID", "8"}, {"SLURM_LOCALID", "0"}}).master_port, process.master_port)
      << "all ranks find the same port";
  EXPECT_NE(read(srun, {{"SLURM_STEP_ID", "1"}}).master_port, process.master_port) << "steps of a job differ";
  EXPECT_EQ(read(srun, {{"MASTER_ADDR", "10.1.2.3"}, {"MASTER_PORT", "4000"}}).master_address, "10.1.2.3");
  EXPECT_EQ(read(srun, {{"SLURM_JOB_NODELIST", ""}}).master_address, "10.0.0.1");
}

TEST_F(Environment, a_shell_within_slurm_is_no_rank) {
  const Variables one{{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "0"}};
  Variables pty = one;
  pty["SLURM_PTY_PORT"] = "40123";
  EXPECT_EQ(read(srun, pty).launcher, Launcher::none) << "srun --pty bash";
  Variables interactive = one;
  interactive["SLURM_STEP_ID"] = "4294967290";
  EXPECT_EQ(read(srun, interactive).launcher, Launcher::none) << "salloc, in a step of its own";
  EXPECT_EQ(read(srun, {{"SLURM_PROCID", ""}}).launcher, Launcher::none) << "salloc, on the login node";
  EXPECT_EQ(read(srun, {{"SLURM_STEP_ID", ""}, {"ENVIRONMENT", "BATCH"}}, /*starts_ranks=*/true).launcher,
            Launcher::none)
      << "a batch script that says --ranks";
}

TEST_F(Environment, hydra_and_mvapich_are_understood) {
  const Variables hydra{{"PMI_RANK", "1"},        {"PMI_SIZE", "4"},        {"MPI_LOCALRANKID", "1"},
                        {"MPI_LOCALNRANKS", "2"}, {"MASTER_ADDR", "host0"}, {"MASTER_PORT", "31000"}};
  const Process process = read(hydra);
  EXPECT_EQ(process.launcher, Launcher::mpi);
  EXPECT_EQ(process.rank, 1);
  EXPECT_EQ(process.world_size, 4);
  EXPECT_EQ(process.local_world_size, 2);
  EXPECT_EQ(process.master_address, "host0");
  EXPECT_FALSE(read(hydra, {{"MPI_LOCALRANKID", ""}, {"MPI_LOCALNRANKS", ""}}).place_is_known)
      << "slurm's pmi2 says no more";
  EXPECT_THAT(refusal(hydra, {{"MASTER_PORT", ""}}), HasSubstr("-genv MASTER_PORT"));
  const Variables mvapich{{"MV2_COMM_WORLD_RANK", "3"},
                          {"MV2_COMM_WORLD_SIZE", "4"},
                          {"MV2_COMM_WORLD_LOCAL_RANK", "3"},
                          {"MV2_COMM_WORLD_LOCAL_SIZE", "4"},
                          {"MASTER_PORT", "31000"}};
  EXPECT_EQ(read(mvapich).rank, 3);
  EXPECT_TRUE(read(mvapich).is_one_host());
  // mpiexec starts its proxies by srun, one a node: what Slurm says is of those.
  Variables within_slurm = srun;
  within_slurm["SLURM_NTASKS"] = "2";
  within_slurm["SLURM_PROCID"] = "1";
  within_slurm.insert(hydra.begin(), hydra.end());
  EXPECT_EQ(read(within_slurm).world_size, 4);
  // srun --mpi=pmi2 sets both, of the same ranks.
  const Process by_srun = read(srun, {{"PMI_RANK", "9"}, {"PMI_SIZE", "12"}});
  EXPECT_EQ(by_srun.launcher, Launcher::slurm);
}

TEST_F(Environment, a_launcher_that_tells_no_size_is_refused_and_one_that_is_unknown_noticed) {
  for (const char* name : {"PMIX_RANK", "FLUX_TASK_RANK", "PALS_RANKID"})
    EXPECT_THAT(refusal({{name, "1"}}, {}),
                AllOf(HasSubstr(std::string(name) + " is 1"), HasSubstr("Set RANK, WORLD_SIZE")));
  EXPECT_EQ(read(srun, {{"PMIX_RANK", "9"}}).launcher, Launcher::slurm) << "srun --mpi=pmix";
  read({{"FOO_RANK", "1"}});
  EXPECT_EQ(sign_of_unknown_launcher(), "FOO_RANK=1");
  read({{"FOO_RANK", "first"}, {"NODE_RANK", "0"}});
  EXPECT_EQ(sign_of_unknown_launcher(), "");
}

TEST_F(Environment, open_mpi_is_understood) {
  EXPECT_EQ(read(mpirun, {{"MASTER_PORT", ""}, {"PMIX_NAMESPACE", "prterun-host-1@1"}}).meeting, "mpi/prterun-host-1@1")
      << "ranks of one host need no port";
  const Process process = read(mpirun);
  EXPECT_EQ(process.launcher, Launcher::mpi);
  EXPECT_EQ(process.rank, 1);
  EXPECT_EQ(process.world_size, 2);
  EXPECT_EQ(process.master_address, "127.0.0.1");
  EXPECT_EQ(process.master_port, 31000);
}

TEST_F(Environment, contradictions_name_the_variables) {
  EXPECT_THAT(refusal(torchrun, {{"RANK", "8"}}),
              HasSubstr("RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE contradict each other: rank 8 of 8"));
  EXPECT_THAT(refusal(torchrun, {{"RANK", ""}}), HasSubstr("RANK is not set"));
  EXPECT_THAT(refusal(torchrun, {{"WORLD_SIZE", ""}}), HasSubstr("WORLD_SIZE is not set"));
  EXPECT_THAT(refusal(torchrun, {{"WORLD_SIZE", "eight"}}), HasSubstr("WORLD_SIZE is \"eight\""));
  EXPECT_THAT(refusal(torchrun, {{"RANK", "-1"}}), HasSubstr("RANK is \"-1\""));
  EXPECT_THAT(refusal(torchrun, {{"MASTER_ADDR", ""}}), HasSubstr("MASTER_ADDR is not"));
  EXPECT_THAT(refusal(torchrun, {{"MASTER_PORT", "70000"}}), HasSubstr("MASTER_PORT is 70000"));
  EXPECT_THAT(refusal(srun, {{"SLURM_LOCALID", ""}}), HasSubstr("SLURM_LOCALID is not set"));
  EXPECT_THAT(refusal(srun, {{"SLURM_TASKS_PER_NODE", "4(x2)"}}),
              HasSubstr("SLURM_TASKS_PER_NODE is \"4(x2)\", which says nothing of node 2"));
  EXPECT_THAT(refusal(srun, {{"SLURM_STEP_ID", ""}, {"ENVIRONMENT", "BATCH"}}), HasSubstr("Start the ranks with srun"));
  EXPECT_THAT(refusal(mpirun, {{"MASTER_PORT", ""}}), HasSubstr("-x MASTER_PORT="));
  EXPECT_THAT(refusal(mpirun, {{"OMPI_COMM_WORLD_RANK", "2"}}), HasSubstr("OMPI_COMM_WORLD_RANK"));
}

TEST(SlurmNotation, first_host) {
  EXPECT_EQ(first_slurm_host("gpu[03-05,9],cpu1", "X"), "gpu03");
  EXPECT_EQ(first_slurm_host("cpu1,gpu[03-05]", "X"), "cpu1");
  EXPECT_EQ(first_slurm_host("solo", "X"), "solo");
  EXPECT_EQ(first_slurm_host("rack[1-2]-ib,other", "X"), "rack1-ib");
  EXPECT_THROW(first_slurm_host("gpu[03", "X"), UserError);
  EXPECT_THROW(first_slurm_host("", "X"), UserError);
}

TEST(SlurmNotation, tasks_of_a_node) {
  EXPECT_EQ(slurm_tasks_of_node("4(x2),3", 0, "X"), 4);
  EXPECT_EQ(slurm_tasks_of_node("4(x2),3", 1, "X"), 4);
  EXPECT_EQ(slurm_tasks_of_node("4(x2),3", 2, "X"), 3);
  EXPECT_THROW(slurm_tasks_of_node("4(x2),3", 3, "X"), UserError);
  EXPECT_THROW(slurm_tasks_of_node("4(xtwo)", 0, "X"), UserError);
}

TEST(Addresses, ranks_of_one_host_meet_on_loopback_and_others_must_not) {
  Process process;
  process.world_size = process.local_world_size = 2;
  EXPECT_EQ(address_for_peers(process), "127.0.0.1");
  process.local_world_size = 1;
  process.rank = 1;
  process.master_address = "127.0.0.1";
  EXPECT_THROW(address_for_peers(process), UserError);
  process.master_address = "no-such-host.invalid";
  EXPECT_THROW(address_for_peers(process), UserError);
}

TEST(Addresses, those_of_this_host_alone_are_known) {
  for (const char* address : {"127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1"}) EXPECT_TRUE(is_loopback(address));
  for (const char* address : {"10.0.0.1", "::", "1.127.0.0", "fe80::1", "localhost"})
    EXPECT_FALSE(is_loopback(address));
  EXPECT_EQ(source_address_towards("127.0.0.1"), "127.0.0.1");
}

}  // namespace
}  // namespace conclave
