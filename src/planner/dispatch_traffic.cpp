#include "planner/dispatch_traffic.h"

#include "base/row_message.h"
#include "mesh/collective_bytes.h"

namespace conclave {
namespace {

constexpr int64_t fp32 = 4, int32 = 4, int64 = 8;

class DispatchTraffic {
 public:
  DispatchTraffic(const PlannedRank& rank, const RoutedRows& rows)
      : rank_(rank),
        moe_(rank.job.job.moe),
        parts_(parts_of(rank.job, rows)),
        degree_(rank.job.layout.degree(Axis::expert)),
        experts_(rank.job.model.num_local_experts),
        top_k_(rank.job.model.num_experts_per_tok),
        tokens_(rank.job.tokens_per_rank()),
        row_(rank.job.model.hidden_size * rank.compute_bytes),
        message_(row_message_bytes(rank.job.model.hidden_size, rank.compute_bytes)) {}

  std::vector<Sending> sendings;

  void forward(bool training) {
    if (training && moe_.capacity_factor) capacity();
    if (degree_ == 1) return;
    plan();
    for (size_t part = 0; part < parts_.size(); ++part) {
      dispatch(part);
      combine(part);
    }
  }

  void backward() {
    if (degree_ == 1) return;
    const bool full = rank_.job.job.memory.activation_checkpointing == ActivationCheckpointing::full;
    const bool not_kept = parts_.size() > 1 && !parts_overlap(rank_.job);
    if (full) plan();
    for (size_t part = 0; part < parts_.size(); ++part) {
      if (full || not_kept) dispatch(part);
      combine_backward(part);
      dispatch_backward(part);
    }
  }

 private:
  bool gathers() const { return moe_.dispatcher == DispatcherKind::all_gather; }
  int64_t tokens_of(size_t part) const {
    const auto parts = static_cast<int64_t>(parts_.size()), i = static_cast<int64_t>(part);
    return tokens_ * (i + 1) / parts - tokens_ * i / parts;
  }

  void send(const char* operation, int64_t bytes) { sendings.push_back({Axis::expert, operation, bytes}); }
  void gather(int64_t bytes) { send("all_gather", bytes_to_all_others(bytes, degree_)); }
  void reduce_scatter(int64_t bytes) { send("reduce_scatter", bytes_to_all_others(bytes, degree_)); }
  void shuffle(size_t part, int64_t bytes_of_token) {
    if (moe_.global_token_shuffle) send("all_to_all", tokens_of(part) * (degree_ - 1) / degree_ * bytes_of_token);
  }

  void capacity() {
    const int world = rank_.job.layout.world_size();
    const auto over_world = [&](const char* operation, int64_t bytes) {
      sendings.push_back({Axis::world, operation, bytes});
    };
    over_world("all_gather", bytes_to_all_others((experts_ + 2) * int64, world));
    if (moe_.drop_policy == DropPolicy::position) return;
    for (int digit = 0; digit < 4; ++digit)
      over_world("all_reduce", all_reduce_bytes(256 * experts_, int64, rank_.rank, world));
    over_world("all_gather", bytes_to_all_others(experts_ * int64, world));
  }

  void plan() {
    const int own = rank_.job.layout.index(Axis::expert, rank_.rank);
    if (moe_.overload == OverloadPolicy::chunk) send("all_reduce", all_reduce_bytes(64 * degree_, int64, own, degree_));
    for (size_t part = 0; part < parts_.size(); ++part) {
      if (moe_.global_token_shuffle) gather(int64);
      shuffle(part, top_k_ * int32);
      if (gathers()) {
        send("all_reduce", all_reduce_bytes(1, int64, own, degree_));
        gather(tokens_of(part) * top_k_ * int32);
      } else if (moe_.overload == OverloadPolicy::spill) {
        gather(experts_ * int64);
      } else {
        send("all_to_all", bytes_to_all_others(experts_ / degree_ * int64, degree_));
      }
    }
  }

  void dispatch(size_t part) {
    shuffle(part, row_);
    shuffle(part, top_k_ * fp32);
    if (!gathers()) return send("all_to_all", parts_[part].sent_to_others * message_);
    gather(tokens_of(part) * row_);
    gather(tokens_of(part) * top_k_ * fp32);
  }
  void combine(size_t part) {
    if (gathers())
      reduce_scatter(tokens_of(part) * row_);
    else
      send("all_to_all", parts_[part].received_from_others * row_);
    shuffle(part, row_);
  }
  void combine_backward(size_t part) {
    shuffle(part, row_);
    if (gathers())
      gather(tokens_of(part) * row_);
    else
      send("all_to_all", parts_[part].sent_to_others * row_);
  }
  void dispatch_backward(size_t part) {
    if (gathers()) {
      reduce_scatter(tokens_of(part) * row_);
      reduce_scatter(tokens_of(part) * top_k_ * fp32);
    } else {
      send("all_to_all", parts_[part].received_from_others * message_);
    }
    shuffle(part, row_);
    shuffle(part, top_k_ * fp32);
  }

  const PlannedRank& rank_;
  const MoeConfig& moe_;
  std::vector<RoutedRows> parts_;
  int degree_;
  int64_t experts_, top_k_, tokens_;
  int64_t row_, message_;  // bytes of a row, bare and with its weight
};

}  // namespace

std::vector<Sending> forward_sendings(const PlannedRank& rank, const RoutedRows& rows, bool training) {
  DispatchTraffic traffic(rank, rows);
  traffic.forward(training);
  return traffic.sendings;
}

std::vector<Sending> backward_sendings(const PlannedRank& rank, const RoutedRows& rows) {
  DispatchTraffic traffic(rank, rows);
  traffic.backward();
  return traffic.sendings;
}

}  // namespace conclave
