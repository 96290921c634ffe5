#include "comm/slurm_process.h"

#include <string_view>

#include "base/error.h"
#include "comm/environment.h"

namespace conclave {
namespace {

int slurm_local_size(const Process& process) {
  if (const char* name = first_set({"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}))
    return slurm_tasks_of_node(*variable(name), count_in("SLURM_NODEID").value_or(0), name);
  if (const auto per_node = count_in("SLURM_NTASKS_PER_NODE")) return *per_node;
  const char* nodes = first_set({"SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"});
  const int hosts = nodes ? *count_in(nodes) : 1;
  if (hosts < 1 || process.world_size % hosts != 0)
    user_error(
        "SLURM_NTASKS is {} on {} nodes, and no variable tells how many run on this one. Start the ranks with srun "
        "--ntasks-per-node.",
        process.world_size, hosts);
  return process.world_size / hosts;
}

std::string slurm_address(const Process& process) {
  if (const auto address = variable("MASTER_ADDR")) return *address;
  if (process.is_one_host()) return "127.0.0.1";
  if (const char* name = first_set({"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"}))
    return first_slurm_host(*variable(name), name);
  if (const auto address = variable("SLURM_LAUNCH_NODE_IPADDR")) return *address;
  user_error(
      "SLURM_PROCID is set, but none of MASTER_ADDR, SLURM_JOB_NODELIST and SLURM_LAUNCH_NODE_IPADDR, so the ranks "
      "cannot find each other. Set MASTER_ADDR to the host of rank 0.");
}

Process from_slurm() {
  const char* tasks = first_set({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
  Process process;
  process.launcher = Launcher::slurm;
  process.rank = required_count("SLURM_PROCID", "srun", "SLURM_NTASKS");
  process.world_size = tasks ? *count_in(tasks) : required_count("SLURM_NTASKS", "srun", "SLURM_PROCID");
  process.local_rank = required_count("SLURM_LOCALID", "srun", "SLURM_PROCID");
  process.local_world_size = slurm_local_size(process);
  process.cpus_per_rank = count_in("SLURM_CPUS_PER_TASK").value_or(0);
  check_place(process, "SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID and SLURM_TASKS_PER_NODE");
  if (process.is_single()) return process;
  const std::string step = variable("SLURM_STEP_ID").value_or("0");
  if (process.is_one_host())
    process.meeting = fmt::format("slurm/{}/{}/{}", variable("SLURM_JOB_ID").value_or("0"), step,
                                  variable("SLURM_RESTART_COUNT").value_or("0"));
  process.master_address = slurm_address(process);
  if (variable("MASTER_PORT")) {
    process.master_port = port_in("MASTER_PORT");
  } else {
    // Below the range that Linux gives to outgoing connections; steps of one job that run at the same time differ.
    process.master_port =
        10000 + static_cast<int>(
                    (count_in("SLURM_JOB_ID").value_or(0) * 7LL + parse_count(step, "SLURM_STEP_ID", step)) % 20000);
  }
  return process;
}

// sbatch gives its script, which runs once on the first node, the variables of a task of the job.
bool is_batch_script() {
  return variable("ENVIRONMENT") == "BATCH" && !first_set({"SLURM_STEP_ID", "SLURM_STEPID"});
}

// What srun --pty started, or salloc in a step of its own (SLURM_INTERACTIVE_STEP), is a person's shell.
bool is_in_a_shell() {
  const char* step = first_set({"SLURM_STEP_ID", "SLURM_STEPID"});
  return first_set({"SLURM_PTY_PORT", "SLURM_PTY_WIN_ROW"}) || (step && variable(step) == "4294967290");
}

}  // namespace

std::optional<Process> process_from_slurm(bool starts_ranks) {
  if (!variable("SLURM_PROCID") || is_in_a_shell()) return {};
  if (!is_batch_script()) return from_slurm();
  if (!starts_ranks && count_in("SLURM_NTASKS").value_or(1) > 1)
    user_error(
        "this is the batch script itself, which runs once, but SLURM_NTASKS is {}. Start the ranks with srun, or on "
        "this host alone with --ranks.",
        *count_in("SLURM_NTASKS"));
  return {};
}

std::string first_slurm_host(const std::string& list, const char* variable) {
  const auto malformed = [&] {
    user_error("environment variable {} is \"{}\", which is no list of hosts. Set MASTER_ADDR to the host of rank 0.",
               variable, list);
  };
  const size_t end = list.find_first_of(",[");
  std::string host = list.substr(0, end);
  if (end != std::string::npos && list[end] == '[') {
    const size_t number_end = list.find_first_of(",-]", end + 1);
    if (number_end == std::string::npos) malformed();
    host += list.substr(end + 1, number_end - end - 1);
    const size_t close = list.find(']', end);
    if (close == std::string::npos) malformed();
    host += list.substr(close + 1, list.find(',', close) - close - 1);  // a suffix: "rack[1-2]-ib"
  }
  if (host.empty()) malformed();
  return host;
}

int slurm_tasks_of_node(const std::string& tasks_per_node, int node, const char* variable) {
  std::string_view rest = tasks_per_node;
  int first_node = 0;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    std::string_view item = rest.substr(0, comma);
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    int nodes = 1;
    if (const size_t times = item.find("(x"); times != std::string_view::npos && item.ends_with(')')) {
      nodes = parse_count(item.substr(times + 2, item.size() - times - 3), variable, tasks_per_node);
      item = item.substr(0, times);
    }
    const int tasks = parse_count(item, variable, tasks_per_node);
    if (node < first_node + nodes) return tasks;
    first_node += nodes;
  }
  user_error("environment variable {} is \"{}\", which says nothing of node {} (SLURM_NODEID).", variable,
             tasks_per_node, node);
}

}  // namespace conclave
