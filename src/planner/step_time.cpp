#include "planner/step_time.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/balance_message.h"
#include "config/model_flops.h"
#include "mesh/collective_bytes.h"
#include "planner/dispatch_traffic.h"
#include "planner/step_walk.h"

namespace conclave {
namespace {

class TimeObserver : public StepObserver {
 public:
  TimeObserver(const PlannedRank& rank, const DeviceDescription& device)
      : rank_(rank),
        device_(device),
        model_(rank.job.model),
        product_rate_(device.peak_flops(rank.compute_bytes) * device.compute.product_efficiency),
        expert_rate_(rank.experts_in_fp8() ? device.compute.fp8_flops * device.compute.product_efficiency
                                           : product_rate_),
        tokens_(static_cast<double>(rank.job.tokens_per_rank())),
        item_(static_cast<double>(rank.compute_bytes)),
        gathered_(rank.units.size(), 0),
        reduced_(rank.units.size(), 0),
        moved_(rank.layers(), 0) {
    for (Axis axis : {Axis::world, Axis::replica, Axis::shard, Axis::expert_replica, Axis::expert_shard, Axis::expert})
      groups_[axis] = rank.job.layout.group(axis, rank.rank);
    const ForwardFlops flops = forward_flops_per_token(model_, rank.job.job.data.sequence_length);
    const auto layers = static_cast<double>(model_.num_hidden_layers);
    // Half of the scores are above the diagonal, and a causal kernel skips them.
    attention_flops_ = tokens_ *
                       (static_cast<double>(flops.attention_projections) +
                        static_cast<double>(flops.attention_scores) / 2 + static_cast<double>(flops.router)) /
                       layers;
    head_flops_ = tokens_ * static_cast<double>(flops.head);
  }

  PlannedTime time;

  void begin_gather(size_t unit) override {
    double seconds = 0;
    for (const PlannedGroup& group : rank_.units[unit].groups) {
      pass(static_cast<double>(group.shard_numel) * (4 + item_));  // the own part is cast into place
      seconds += collective(group.shard_axis, Pattern::all_gather_or_reduce_scatter,
                            bytes_to_all_others(group.shard_numel * rank_.compute_bytes, group.shard_degree));
    }
    gathered_[unit] = network_ = std::max(network_, now_) + seconds;
  }
  void finish_gather(size_t unit) override { wait_until(gathered_[unit], time.gather_wait); }

  void embedding_forward() override { pass(2 * stream()); }
  void layer_forward(size_t layer) override {
    const RoutedRows& rows = rank_.rows[layer];
    product(attention_flops_);
    expert_product(expert_flops(rows));
    pass(forward_bytes(rows) + quantized_bytes(rows, 1, 1));
    exchange(forward_sendings(rank_, rows, /*training=*/true), expert_flops(rows));
  }
  void begin_offload(size_t layer) override { moved_[layer] = move_input(); }
  void finish_offload(size_t layer) override { wait_until(moved_[layer], time.offload_wait); }
  void begin_return(size_t layer) override { moved_[layer] = move_input(); }
  void finish_return(size_t layer) override { wait_until(moved_[layer], time.offload_wait); }
  void begin_balance() override {
    const int64_t numbers = balance_message_numbers(model_.num_hidden_layers, model_.num_local_experts);
    balance_ = std::max(network_, now_) + over_world(8.0 * static_cast<double>(numbers));
  }
  void finish_balance() override { wait_until(balance_, time.reduce_wait); }
  void head() override {
    product(3 * head_flops_);
    pass(tokens_ * static_cast<double>(model_.vocab_size) * item_ * 4 + 8 * stream());
  }
  void layer_backward(size_t layer) override {
    const RoutedRows& rows = rank_.rows[layer];
    product(2 * attention_flops_);
    expert_product(2 * expert_flops(rows));
    pass(2 * forward_bytes(rows) + quantized_bytes(rows, 3, 5));
    const ActivationCheckpointing kept = rank_.job.job.memory.activation_checkpointing;
    if (kept != ActivationCheckpointing::none) {  // attention once more, and the experts' first products
      product(attention_flops_);
      expert_product(expert_flops(rows) * 2 / 3);
      pass(forward_bytes(rows) + quantized_bytes(rows, 1, 0));
    }
    exchange(backward_sendings(rank_, rows), 2 * expert_flops(rows));
    gradient_conversion(layer + 1);
  }
  void embedding_backward() override { pass(3 * stream()); }

  void begin_reduce(size_t unit, bool, bool last) override {
    double seconds = 0;
    for (const PlannedGroup& group : rank_.units[unit].groups) {
      seconds += collective(group.shard_axis, Pattern::all_gather_or_reduce_scatter,
                            bytes_to_all_others(group.shard_numel * rank_.reduce_bytes(), group.shard_degree));
      if (last && group.shard_degree == 1) seconds += all_reduce(group);
    }
    reduced_[unit] = network_ = std::max(network_, now_) + seconds;
  }
  void finish_reduce(size_t unit, bool last) override {
    wait_until(reduced_[unit], time.reduce_wait);
    double seconds = 0;
    for (const PlannedGroup& group : rank_.units[unit].groups)
      if (last && group.shard_degree > 1) seconds += all_reduce(group);
    wait_until(at_replicas_, time.reduce_wait);  // the previous unit's sum
    if (seconds > 0) at_replicas_ = network_ = std::max(network_, now_) + seconds;
  }
  void end_micro_step() override { wait_until(at_replicas_, time.reduce_wait); }

  void loss_sum() override { wait_until(now_ + over_world(8), time.reduce_wait); }
  void gradient_norm() override {
    spend(4 * shard_elements() / device_.memory.bandwidth, time.optimizer);
    wait_until(now_ + over_world(8.0 * static_cast<double>(rank_.units.size())), time.reduce_wait);
  }
  // Parameter, two moments and gradient are read, all but the gradient written.
  void update() override { spend(28 * shard_elements() / device_.memory.bandwidth, time.optimizer); }

  double now() const { return now_; }

 private:
  double move_input() { return host_ = std::max(host_, now_) + stream() / device_.memory.host_bandwidth; }
  double stream() const { return tokens_ * static_cast<double>(model_.hidden_size) * item_; }
  double expert_flops(const RoutedRows& rows) const {
    return static_cast<double>(rows.received) * 6.0 *
           static_cast<double>(model_.hidden_size * model_.intermediate_size);
  }
  // Bytes that the passes between the products of a layer's forward read and write: norms, rotation, the residual
  // stream, packing and unpacking of rows, the activation, combine.
  double forward_bytes(const RoutedRows& rows) const {
    const double hidden = static_cast<double>(model_.hidden_size), row = hidden * item_;
    const double packed =
        static_cast<double>((model_.num_attention_heads + 2 * model_.num_key_value_heads) * model_.head_dim) * item_ *
        tokens_;
    const double sent = tokens_ * static_cast<double>(model_.num_experts_per_tok),
                 received = static_cast<double>(rows.received);
    return 8 * stream() + 4 * packed + (sent + received) * 4 * row +
           received * 3 * static_cast<double>(model_.intermediate_size) * item_;
  }
  // Quantizing for fp8 reads bf16 and writes one byte: so many times the rows of either width, and each weight once.
  double quantized_bytes(const RoutedRows& rows, int64_t of_hidden, int64_t of_intermediate) const {
    if (!rank_.experts_in_fp8()) return 0;
    const int64_t hidden = model_.hidden_size, intermediate = model_.intermediate_size;
    const int64_t experts = model_.num_local_experts / rank_.job.layout.degree(Axis::expert);
    const int64_t row = of_hidden * hidden + of_intermediate * intermediate;
    return 3.0 * static_cast<double>(rows.received * row + experts * 3 * hidden * intermediate);
  }
  double shard_elements() const {
    double sum = 0;
    for (const PlannedUnit& unit : rank_.units)
      for (const PlannedGroup& group : unit.groups) sum += static_cast<double>(group.shard_numel);
    return sum;
  }
  // Products of bf16 are added to the fp32 gradient in a pass.
  void gradient_conversion(size_t unit) {
    for (const PlannedGroup& group : rank_.units[unit].groups)
      pass(static_cast<double>(group.numel) * (item_ == 2 ? 2 + 2 + 4 : 0));
  }

  void spend(double seconds, double& part) {
    now_ += seconds;
    part += seconds;
  }
  void product(double flops) { spend(flops / product_rate_, time.products); }
  void expert_product(double flops) { spend(flops / expert_rate_, time.products); }
  void pass(double bytes) { spend(bytes / device_.memory.bandwidth, time.memory_passes); }
  void wait_until(double moment, double& part) {
    if (moment > now_) spend(moment - now_, part);
  }

  double collective(Axis axis, Pattern pattern, int64_t bytes) {
    const AxisGroup& group = groups_.at(axis);
    if (group.size() == 1) return 0;
    const double seconds = collective_seconds(pattern, static_cast<double>(bytes), group, device_);
    time.busy_by_axis[name_of(axis)] += seconds;
    return seconds;
  }
  double all_reduce(const PlannedGroup& group) {
    return collective(group.replica_axis, Pattern::all_reduce,
                      all_reduce_bytes(group.shard_numel, 4, group.replica_index, group.replica_degree));
  }
  double over_world(double bytes) {
    const int size = rank_.job.layout.world_size();
    return collective(Axis::world, Pattern::all_reduce, static_cast<int64_t>(bytes) * (size - 1));
  }
  // With overlapping parts the rows of all but one part travel while the experts compute.
  void exchange(const std::vector<Sending>& sendings, double expert_flops) {
    double seconds = 0;
    for (const Sending& sending : sendings) {
      const std::string_view operation = sending.operation;
      const Pattern pattern = operation == "all_to_all"   ? Pattern::all_to_all
                              : operation == "all_reduce" ? Pattern::all_reduce
                                                          : Pattern::all_gather_or_reduce_scatter;
      seconds += collective(sending.axis, pattern, sending.bytes);
    }
    if (parts_overlap(rank_.job)) {
      const auto parts = static_cast<double>(*rank_.job.job.moe.dispatch_chunks);
      seconds -= std::min(seconds, expert_flops / expert_rate_) * (parts - 1) / parts;
    }
    spend(seconds, time.dispatch);
  }

  const PlannedRank& rank_;
  const DeviceDescription& device_;
  const ModelConfig& model_;
  double product_rate_, expert_rate_, tokens_, item_;
  double attention_flops_ = 0, head_flops_ = 0;  // of one layer's forward; of the head's
  std::map<Axis, AxisGroup> groups_;
  double now_ = 0;          // of the computation
  double network_ = 0;      // when the gathers and reductions that were started end
  double at_replicas_ = 0;  // when the sum over replicas that was started last ends
  double host_ = 0;         // when the inputs that are on their way to or from the host have arrived
  double balance_ = 0;
  std::vector<double> gathered_, reduced_, moved_;
};

}  // namespace

double collective_seconds(Pattern pattern, double bytes, const AxisGroup& group, const DeviceDescription& device) {
  const auto& network = device.network;
  const int64_t own_node = group.ranks[static_cast<size_t>(group.index)] / network.ranks_per_node;
  double here = 0;  // ranks of the group on this node
  for (int rank : group.ranks) here += rank / network.ranks_per_node == own_node ? 1 : 0;
  const double size = static_cast<double>(group.ranks.size()), others = size - 1;
  const bool across = here < size;
  const double latency = others * (across ? network.cluster_latency : network.node_latency);
  if (!across) return latency + bytes / network.node_bandwidth;
  const double away = bytes * (size - here) / others;
  const double within = bytes - away;
  // NCCL's rings pass a part that came from another node on within the node: each part crosses once for each node, not
  // once for each rank. Gloo's collectives here, and all_to_all anywhere, send to each rank by itself.
  const bool rings = device.device.kind == DeviceKind::cuda && pattern != Pattern::all_to_all;
  if (rings) return latency + std::max(away / here / network.cluster_bandwidth, bytes / network.node_bandwidth);
  return latency + std::max(away / network.cluster_bandwidth, within / network.node_bandwidth);
}

PlannedTime step_time(const PlannedRank& rank, const DeviceDescription& device) {
  TimeObserver observer(rank, device);
  walk_step(rank.job, observer);
  PlannedTime time = observer.time;
  time.step_seconds = observer.now();
  time.tokens_per_second = static_cast<double>(rank.job.tokens_per_step()) / time.step_seconds;
  time.model_flops_utilization =
      model_flops_utilization(training_flops_per_token(rank.job.model, rank.job.job.data.sequence_length),
                              time.tokens_per_second,
                              device.peak_flops(rank.compute_bytes) * rank.job.layout.world_size())
          .value_or(0);
  return time;
}

std::vector<std::string> assumptions_of_time(const DeviceDescription& device) {
  const auto& network = device.network;
  std::vector<std::string> lines;
  lines.push_back(fmt::format(
      "matrix products reach {:.0f} % of the peak (compute.product_efficiency): {:.3g} TFLOP/s in fp8, {:.3g} in bf16, "
      "{:.3g} in fp32",
      100 * device.compute.product_efficiency, device.compute.fp8_flops * device.compute.product_efficiency / 1e12,
      device.compute.bf16_flops * device.compute.product_efficiency / 1e12,
      device.compute.fp32_flops * device.compute.product_efficiency / 1e12));
  lines.push_back(fmt::format("everything between the products is bound by memory, at {:.3g} GB/s (memory.bandwidth)",
                              device.memory.bandwidth / 1e9));
  lines.emplace_back(
      fmt::format("{} ranks a node; a rank sends {:.3g} GB/s within it ({:.3g} us a message) and {:.3g} GB/s "
                  "across ({:.3g} us)",
                  network.ranks_per_node, network.node_bandwidth / 1e9, network.node_latency * 1e6,
                  network.cluster_bandwidth / 1e9, network.cluster_latency * 1e6));
  lines.emplace_back(
      "gathers of the next units and the reduction of the last one run under the computation, one after the other; "
      "dispatch (but for moe.dispatch_chunks) is waited for; links are not shared with anybody");
  lines.push_back(fmt::format("offloaded inputs move at {:.3g} GB/s beside everything else (memory.host_bandwidth)",
                              device.memory.host_bandwidth / 1e9));
  lines.emplace_back("the data loader, validation and checkpoints take no time");
  return lines;
}

}  // namespace conclave
