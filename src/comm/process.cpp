#include "comm/process.h"

#include <ATen/Parallel.h>
#include <sched.h>

#include <charconv>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "base/error.h"

namespace conclave {
namespace {

std::optional<std::string> variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

int parse_count(std::string_view text, const char* name, std::string_view whole) {
  int value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc() || end != text.data() + text.size() || value < 0)
    user_error(
        "environment variable {} is \"{}\", where a number was expected. The launcher sets it: unset it, or start the "
        "ranks by the launcher.",
        name, whole);
  return value;
}

std::optional<int> count(const char* name) {
  const auto text = variable(name);
  if (!text) return std::nullopt;
  return parse_count(*text, name, *text);
}

int required_count(const char* name, const char* launcher, const char* seen) {
  const auto value = count(name);
  if (!value)
    user_error(
        "environment variable {} is set, so this rank seems to be started by {}, but {} is not set. Start all ranks by "
        "{}, or unset {}.",
        seen, launcher, name, launcher, seen);
  return *value;
}

int port(const char* name) {
  const int value = *count(name);
  if (value < 1 || value > 65535)
    user_error("environment variable {} is {}, which is no port: use 1 to 65535.", name, value);
  return value;
}

// `names`: the variables that the four numbers came from, for the message.
void check_place(const Process& process, const char* names) {
  const bool holds = process.world_size >= 1 && process.rank < process.world_size && process.local_world_size >= 1 &&
                     process.local_rank < process.local_world_size && process.local_world_size <= process.world_size;
  if (!holds)
    user_error(
        "the environment variables {} contradict each other: rank {} of {}, on this host {} of {}. Start all ranks by "
        "one launcher.",
        names, process.rank, process.world_size, process.local_rank, process.local_world_size);
}

Process from_torchrun() {
  Process process;
  process.launcher = Launcher::torchrun;
  process.rank = required_count("RANK", "torchrun", "WORLD_SIZE");
  process.world_size = required_count("WORLD_SIZE", "torchrun", "RANK");
  process.local_rank = count("LOCAL_RANK").value_or(process.rank);
  process.local_world_size = count("LOCAL_WORLD_SIZE").value_or(process.world_size);
  check_place(process, "RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE");
  if (process.is_single()) return process;
  if (!variable("MASTER_ADDR") || !variable("MASTER_PORT"))
    user_error(
        "RANK and WORLD_SIZE are set, but {} is not: the ranks cannot find each other. Start them by torchrun, or set "
        "MASTER_ADDR and MASTER_PORT to the address and a free port of rank 0.",
        variable("MASTER_ADDR") ? "MASTER_PORT" : "MASTER_ADDR");
  process.master_address = *variable("MASTER_ADDR");
  process.master_port = port("MASTER_PORT");
  process.launcher_serves_store = variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
  process.restart_count = count("TORCHELASTIC_RESTART_COUNT").value_or(0);
  return process;
}

const char* first_set(std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (variable(name)) return name;
  return nullptr;
}

int slurm_local_size(const Process& process) {
  if (const char* name = first_set({"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}))
    return slurm_tasks_of_node(*variable(name), count("SLURM_NODEID").value_or(0), name);
  if (const auto per_node = count("SLURM_NTASKS_PER_NODE")) return *per_node;
  const char* nodes = first_set({"SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"});
  const int hosts = nodes ? *count(nodes) : 1;
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
  process.world_size = tasks ? *count(tasks) : required_count("SLURM_NTASKS", "srun", "SLURM_PROCID");
  process.local_rank = required_count("SLURM_LOCALID", "srun", "SLURM_PROCID");
  process.local_world_size = slurm_local_size(process);
  process.cpus_per_rank = count("SLURM_CPUS_PER_TASK").value_or(0);
  check_place(process, "SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID and SLURM_TASKS_PER_NODE");
  if (process.is_single()) return process;
  process.master_address = slurm_address(process);
  if (variable("MASTER_PORT")) {
    process.master_port = port("MASTER_PORT");
  } else {
    // Below the range that Linux gives to outgoing connections; steps of one job that run at the same time differ.
    const int step = variable("SLURM_STEP_ID") ? *count("SLURM_STEP_ID") : 0;
    process.master_port = 10000 + static_cast<int>((count("SLURM_JOB_ID").value_or(0) * 7LL + step) % 20000);
  }
  return process;
}

Process from_open_mpi() {
  Process process;
  process.launcher = Launcher::open_mpi;
  process.rank = required_count("OMPI_COMM_WORLD_RANK", "mpirun", "OMPI_COMM_WORLD_SIZE");
  process.world_size = required_count("OMPI_COMM_WORLD_SIZE", "mpirun", "OMPI_COMM_WORLD_RANK");
  process.local_rank = required_count("OMPI_COMM_WORLD_LOCAL_RANK", "mpirun", "OMPI_COMM_WORLD_RANK");
  process.local_world_size = count("OMPI_COMM_WORLD_LOCAL_SIZE").value_or(process.world_size);
  check_place(process, "OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK and _LOCAL_SIZE");
  if (process.is_single()) return process;
  const auto address = variable("MASTER_ADDR");
  if (!variable("MASTER_PORT") || (!address && !process.is_one_host()))
    user_error(
        "Open MPI started this rank, but {} is not set: the ranks cannot find each other. Add -x MASTER_ADDR=<host of "
        "rank 0> -x MASTER_PORT=<a free port there> to mpirun.",
        variable("MASTER_PORT") ? "MASTER_ADDR" : "MASTER_PORT");
  process.master_address = address.value_or("127.0.0.1");
  process.master_port = port("MASTER_PORT");
  return process;
}

// sbatch gives its script, which runs once on the first node, the variables of a task of the job.
bool is_batch_script() {
  return variable("ENVIRONMENT") == "BATCH" && !first_set({"SLURM_STEP_ID", "SLURM_STEPID"});
}

int usable_cores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return sched_getaffinity(0, sizeof cores, &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

}  // namespace

Process process_from_environment() {
  // RANK alone is a name that anything may use; with WORLD_SIZE it is torchrun's pair.
  if (variable("WORLD_SIZE") || (variable("RANK") && first_set({"MASTER_ADDR", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"})))
    return from_torchrun();
  if (first_set({"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"})) return from_open_mpi();
  if (variable("SLURM_PROCID")) {
    if (!is_batch_script()) return from_slurm();
    if (count("SLURM_NTASKS").value_or(1) > 1)
      user_error("this is the batch script itself, which runs once, but SLURM_NTASKS is {}. Start the ranks with srun.",
                 *count("SLURM_NTASKS"));
  }
  return {};
}

void set_threads(const Process& process) {
  const int cores = process.cpus_per_rank > 0 ? process.cpus_per_rank : usable_cores() / process.local_world_size;
  at::set_num_threads(cores < 1 ? 1 : cores);
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
