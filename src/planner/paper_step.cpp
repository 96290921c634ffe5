#include "planner/paper_step.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>
#include <numeric>

#include "config/model_flops.h"
#include "device/paper_communicator.h"
#include "planner/collective_time.h"
#include "step/step_exchange.h"

namespace conclave {
namespace {

// Micro-steps between the first and the last are alike, unless their rows differ: one stands for all.
constexpr int64_t most_micro_steps = 3;

CheckedJob with_few_micro_steps(const PlannedRank& planned) {
  CheckedJob job = planned.job;
  if (planned.routing.size() == 1) job.micro_steps = std::min(job.micro_steps, most_micro_steps);
  return job;
}

// The rows of one micro-step after the other.
class CurrentRouting final : public AssumedChoices {
 public:
  explicit CurrentRouting(const PlannedRank& planned) : routing_(planned.routing) {}
  std::shared_ptr<const RowsBySource> of_layer(int64_t layer) const override {
    return routing_[micro_step_ % routing_.size()]->of_layer(layer);
  }
  void begin(size_t micro_step) { micro_step_ = micro_step; }

 private:
  const std::vector<std::shared_ptr<const AssumedChoices>>& routing_;
  size_t micro_step_ = 0;
};

PaperMachine machine_of(const PlannedRank& planned) {
  const DeviceDescription& device = planned.device;
  const double efficiency = device.compute.product_efficiency;
  return {.is_gpu = device.device.kind == at::kCUDA,
          .has_bf16 = device.has_bf16(),
          .threads = planned.threads,
          .stages_sums = planned.stages_sums,
          .rates = {.fp32_operations = device.peak_flops(4) * efficiency,
                    .bf16_operations = device.peak_flops(2) * efficiency,
                    .fp8_operations = device.compute.fp8_flops * efficiency,
                    .attention = device.compute.attention_efficiency / efficiency,
                    .bytes = device.memory.bandwidth,
                    .optimizer_bytes = device.memory.optimizer_bandwidth,
                    .host_bytes = device.memory.host_bandwidth},
          .collective_seconds = [device](CollectivePattern pattern, double bytes, const GroupOnNodes& group) {
            return group.ranks == 1 ? 0 : collective_seconds(pattern, bytes, group, device);
          }};
}

Process process_of(const PlannedRank& planned) {
  Process process;
  process.rank = planned.rank;
  process.world_size = planned.job.layout.world_size();
  process.local_world_size = static_cast<int>(planned.device.network.ranks_per_node);
  return process;
}

Axis axis_of(const std::string& name) {
  for (const Axis axis : {Axis::replica, Axis::shard, Axis::expert_replica, Axis::expert_shard, Axis::expert})
    if (name == name_of(axis)) return axis;
  return Axis::world;
}

WorldOptions world_on_paper(PaperDevice& device, const PlannedRank& planned) {
  WorldOptions options;
  options.device = at::kMeta;
  options.on_paper = [&device, &planned](const AxisGroup& group, const std::string& axis) {
    const GroupOnNodes on_nodes = group_on_nodes(planned.job.layout, axis_of(axis), planned.rank, planned.device);
    return std::make_unique<PaperCommunicator>(device, group, on_nodes, axis);
  };
  return options;
}

// What has been sent and waited for since the rank began.
struct Costs {
  std::array<double, phases> seconds{};
  TrafficByOperation traffic;
  std::map<std::string, double> busy_by_axis;

  // Adds what `to` has more than `from`, so many times.
  void add_difference(const Costs& from, const Costs& to, int64_t times) {
    const auto factor = static_cast<double>(times);
    for (int phase = 0; phase < phases; ++phase) seconds[phase] += factor * (to.seconds[phase] - from.seconds[phase]);
    for (const auto& [key, sent] : to.traffic) {
      const auto before = from.traffic.find(key);
      const Traffic earlier = before == from.traffic.end() ? Traffic{} : before->second;
      traffic[key].calls += times * (sent.calls - earlier.calls);
      traffic[key].bytes += times * (sent.bytes - earlier.bytes);
    }
    for (const auto& [axis, busy] : to.busy_by_axis) {
      const auto before = from.busy_by_axis.find(axis);
      busy_by_axis[axis] += factor * (busy - (before == from.busy_by_axis.end() ? 0 : before->second));
    }
  }
};

class PaperRank {
 public:
  explicit PaperRank(const PlannedRank& planned)
      : planned_(planned),
        device_(machine_of(planned)),
        world_(process_of(planned), world_on_paper(device_, planned)),
        job_(with_few_micro_steps(planned), world_),
        routing_(planned),
        forward_backward_(job_.model(), job_.settings(), &routing_) {
    job_.model().allocate_parameters();
    job_.model().allocate_training_state();
    hold_what_stays();
    forward_backward_.clock().time_kernels();
    forward_backward_.clock().set_listener(&device_.memory());
    device_.memory().set_units(job_.model().declarations().size());
  }

  void train() {
    TrainStep step(job_, forward_backward_);
    const StepReport report = step.run([this] { return next_batch(); }, targets_of_source(), /*update=*/1, /*lr=*/0);
    add_times(report.times);
    begins_.push_back(costs());  // the end of the last
    highest_over_ranks(job_, {});
    if (job_.job().metrics.record_routing) gather_rows(job_, report);
  }

  void evaluate() { forward_backward_.evaluate(next_batch()); }

  // Of all micro-steps, those that one has stood for included.
  Costs costs_of_step() {
    Costs all = costs();
    const bool has_trained = begins_.size() > 1;  // an evaluation is one batch, however many micro-steps a step has
    if (has_trained && planned_.job.micro_steps > job_.micro_steps())
      all.add_difference(begins_[1], begins_[2], planned_.job.micro_steps - job_.micro_steps());
    return all;
  }

  PlannedStep result() {
    const Costs costs = costs_of_step();
    PlannedStep planned;
    planned.memory = planned_memory();
    planned.traffic = costs.traffic;
    planned.time = planned_time(costs);
    for (const Unit* unit : job_.model().units())
      for (const FlatParameter& group : unit->groups()) planned.parameters += group.layout().shard_numel();
    planned.compute_bytes = static_cast<int64_t>(c10::elementSize(job_.compute()));
    return planned;
  }

 private:
  // Beside what the engine allocates on paper: copies for a checkpoint behind the steps, of which replicas share the
  // writing (from a GPU they go to memory of the host, which is not what is planned), and a library's workspace.
  void hold_what_stays() {
    const auto hold = [this](MemoryCategory category, int64_t bytes) {
      const MemoryScope scope(category);
      kept_.push_back(at::empty({bytes}, at::device(at::kMeta).dtype(at::kByte)));
    };
    const CheckpointConfig& checkpoints = job_.job().checkpoint;
    if (device_.machine().is_gpu) {
      hold(MemoryCategory::workspace, cublas_workspace_bytes);
    } else if (checkpoints.saves() && checkpoints.async) {
      hold(MemoryCategory::checkpoint, job_.model().kept_elements() * static_cast<int64_t>(sizeof(float)));
    }
  }

  MicroBatch next_batch() {
    add_times(forward_backward_.clock().take());
    routing_.begin(begins_.size());
    begins_.push_back(costs());
    const int64_t batch = job_.job().data.micro_batch_size, sequence = job_.job().data.sequence_length;
    const auto tokens = [&] { return at::empty({batch * sequence}, at::device(at::kMeta).dtype(at::kLong)); };
    std::vector<int64_t> samples(static_cast<size_t>(batch));
    const std::vector<int64_t> sources(targets_of_source().size() > 1 ? samples.size() : 0);
    std::iota(samples.begin(), samples.end(), planned_.rank * batch);
    return {tokens(), tokens(), batch, sequence, std::move(samples), sources, documents()};
  }
  // All of one length, but for what a sequence leaves for its last one.
  std::shared_ptr<const Documents> documents() const {
    if (!planned_.job.document_tokens) return nullptr;
    const int64_t batch = job_.job().data.micro_batch_size, sequence = job_.job().data.sequence_length;
    std::vector<int64_t> ends;
    for (int64_t begin = 0; begin < batch * sequence; begin += sequence)
      for (int64_t end = 0; end < sequence;) {
        end = std::min(end + *planned_.job.document_tokens, sequence);
        ends.push_back(begin + end);
      }
    return std::make_shared<const Documents>(documents_of(std::move(ends), sequence, at::kMeta));
  }
  // Which source a target is of changes no cost; how many sources there are is how many losses are summed.
  std::vector<int64_t> targets_of_source() {
    std::vector<int64_t> targets(std::max<size_t>(job_.job().data.train.sets.size(), 1));
    targets[0] = job_.tokens_per_step();
    return targets;
  }

  void add_times(const std::vector<StepClock::Times>& times) {
    for (int phase = 0; phase < phases; ++phase) seconds_[phase] += total_seconds(times, static_cast<Phase>(phase));
  }
  Costs costs() { return {seconds_, device_.traffic().snapshot(), device_.busy_by_axis()}; }

  PlannedMemory planned_memory() {
    std::vector<std::string> units;
    for (const UnitDeclaration& unit : job_.model().declarations()) units.push_back(unit.name);
    const MemoryReport report = device_.memory().report();
    return {report.peak_of, report.at_peak, device_.memory().peak_moment(units), device_.most_offloaded()};
  }

  PlannedTime planned_time(const Costs& costs) {
    const auto in = [&](Phase phase) { return costs.seconds[static_cast<size_t>(phase)]; };
    PlannedTime time;
    time.products = in(Phase::products);
    time.attention = in(Phase::attention);
    time.memory_passes = in(Phase::computing) + in(Phase::permute) + in(Phase::kernels);
    time.optimizer = in(Phase::optimizer);
    time.dispatch = in(Phase::dispatch);
    time.gather_wait = in(Phase::gather);
    time.reduce_wait = in(Phase::reduce);
    time.offload_wait = in(Phase::offload);
    time.step_seconds = std::accumulate(costs.seconds.begin(), costs.seconds.end(), 0.0);
    for (const auto& [axis, busy] : costs.busy_by_axis)
      if (busy > 0) time.busy_by_axis[axis] = busy;
    time.tokens_per_second = static_cast<double>(planned_.job.tokens_per_step()) / time.step_seconds;
    const auto item = static_cast<int64_t>(c10::elementSize(job_.compute()));
    const int64_t tokens_of_document = planned_.job.document_tokens.value_or(job_.job().data.sequence_length);
    time.model_flops_utilization =
        model_flops_utilization(training_flops_per_token(job_.model_config(), tokens_of_document),
                                time.tokens_per_second, planned_.device.peak_flops(item) * job_.layout().world_size())
            .value_or(0);
    return time;
  }

  const PlannedRank& planned_;
  const at::AutoDispatchBelowADInplaceOrView no_autograd_;  // whose share of an operator's time is most of it here
  PaperDevice device_;
  World world_;
  ParallelJob job_;
  CurrentRouting routing_;
  ForwardBackward forward_backward_;
  std::vector<at::Tensor> kept_;
  std::array<double, phases> seconds_{};
  std::vector<Costs> begins_;  // of micro-steps
};

}  // namespace

PlannedRank plan_rank(const CheckedJob& job, int rank, const DeviceDescription& device,
                      std::shared_ptr<const AssumedChoices> routing) {
  const bool by_gloo = device.device.kind == at::kCPU && job.layout.world_size() > 1;
  return {.job = job, .rank = rank, .device = device, .routing = {std::move(routing)}, .stages_sums = by_gloo};
}

PlannedStep plan_step(const PlannedRank& rank) {
  PaperRank on_paper(rank);
  on_paper.train();
  return on_paper.result();
}

PlannedStep plan_evaluation(const PlannedRank& rank) {
  PaperRank on_paper(rank);
  on_paper.evaluate();
  return on_paper.result();
}

}  // namespace conclave
