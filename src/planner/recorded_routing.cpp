#include "planner/recorded_routing.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"

namespace conclave {
namespace {

// Shares of `whole` in the proportion of `weights`, which add up to `sum`: rounded so that they add up to `whole`, and
// none is more than its weight. Of equal remainders the first are rounded up.
std::vector<int64_t> shares_of(int64_t whole, const std::vector<int64_t>& weights, int64_t sum) {
  std::vector<int64_t> shares(weights.size());
  if (sum == 0) return shares;
  std::vector<std::pair<int64_t, size_t>> remainders;
  int64_t left = whole;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t product = weights[i] * whole;
    shares[i] = product / sum;
    left -= shares[i];
    if (product % sum > 0) remainders.emplace_back(-(product % sum), i);
  }
  std::partial_sort(remainders.begin(), remainders.begin() + left, remainders.end());
  for (int64_t i = 0; i < left; ++i) ++shares[remainders[static_cast<size_t>(i)].second];
  return shares;
}

}  // namespace

std::vector<std::vector<int64_t>> divide_rows(const std::vector<int64_t>& rows_of_expert,
                                              const std::vector<int64_t>& tokens, int64_t choices) {
  std::vector<int64_t> left = rows_of_expert;
  int64_t tokens_left = std::accumulate(tokens.begin(), tokens.end(), int64_t{0});
  std::vector<std::vector<int64_t>> parts;
  for (const int64_t of_part : tokens) {
    parts.push_back(shares_of(of_part * choices, left, tokens_left * choices));
    for (size_t expert = 0; expert < left.size(); ++expert) left[expert] -= parts.back()[expert];
    tokens_left -= of_part;
  }
  return parts;
}

int64_t drop_rows(RowsBySource& rows, int64_t capacity, DropPolicy policy) {
  int64_t dropped = 0;
  for (size_t expert = 0; expert < rows[0].size(); ++expert) {
    std::vector<int64_t> of_rank;
    for (const std::vector<int64_t>& of_source : rows) of_rank.push_back(of_source[expert]);
    const int64_t total = std::accumulate(of_rank.begin(), of_rank.end(), int64_t{0});
    if (total <= capacity) continue;
    dropped += total - capacity;
    if (policy == DropPolicy::position) {
      int64_t room = capacity;
      for (int64_t& own : of_rank) {
        own = std::min(own, room);
        room -= own;
      }
    } else {
      of_rank = shares_of(capacity, of_rank, total);
    }
    for (size_t rank = 0; rank < rows.size(); ++rank) rows[rank][expert] = of_rank[rank];
  }
  return dropped;
}

RowsBySource group_of(const RowsBySource& world, const Layout& layout, int rank) {
  const int degree = layout.degree(Axis::expert), first = rank - layout.index(Axis::expert, rank);
  return {world.begin() + first, world.begin() + first + degree};
}

RecordedRouting::RecordedRouting(const RoutingRecord& record, const CheckedJob& job) : record_(record), job_(job) {
  const ModelConfig& model = job.model;
  const RoutingShape& shape = record.shape();
  const std::string name = record.file().string();
  if (!record.damage().empty()) user_error("{}", record.damage());
  if (shape != RoutingShape{model.mixtures(), model.experts(), model.top_k()})
    user_error(
        "{} is of a model with {} layers, {} experts and {} choices of a token, but the job's model has {}, {} and {}. "
        "Give a record of this model.",
        name, shape.layers, shape.experts, shape.choices, model.mixtures(), model.experts(), model.top_k());
  for (const RoutingRecord::Step& step : record.steps()) {
    begins_.push_back(tokens_);
    tokens_ += step.tokens_of_all();
  }
  if (steps() == 0)
    user_error("{} has {} tokens, but one step of the job has {}. Record more steps, or plan a smaller batch.", name,
               tokens_, job.tokens_per_step());
}

size_t RecordedRouting::record_at(int64_t token) const {
  return static_cast<size_t>(std::upper_bound(begins_.begin(), begins_.end(), token) - begins_.begin() - 1);
}

// What of a source lies in the step goes to its ranks. The source begins at token `begin` of the stream.
void RecordedRouting::add_source(const std::vector<const int32_t*>& rows_of_layer, int64_t begin, int64_t tokens,
                                 int64_t first_token, StepRows& step) const {
  const int64_t of_rank = job_.tokens_per_rank(), world = job_.layout.world_size();
  const int64_t experts = job_.model.experts(), choices = job_.model.top_k();
  std::vector<int64_t> parts;
  for (int64_t at = begin; at < begin + tokens; at += parts.back())
    parts.push_back(std::min(begin + tokens, (at / of_rank + 1) * of_rank) - at);
  for (size_t layer = 0; layer < rows_of_layer.size(); ++layer) {
    const std::vector<int64_t> rows(rows_of_layer[layer], rows_of_layer[layer] + experts);
    const auto divided =
        parts.size() == 1 ? std::vector<std::vector<int64_t>>{rows} : divide_rows(rows, parts, choices);
    int64_t at = begin - first_token;
    for (size_t part = 0; part < parts.size(); at += parts[part++]) {
      if (at < 0 || at >= job_.tokens_per_step()) continue;
      const int64_t place = at / of_rank;
      std::vector<int64_t>& sum = step.of_micro_step[place / world][layer][place % world];
      for (int64_t expert = 0; expert < experts; ++expert) sum[expert] += divided[part][expert];
    }
  }
}

StepRows RecordedRouting::step(int64_t index) const {
  const int64_t first = index * job_.tokens_per_step(), end = first + job_.tokens_per_step();
  const RoutingShape& shape = record_.shape();
  StepRows step;
  step.first_recorded = first_recorded(index);
  step.of_micro_step.assign(
      static_cast<size_t>(job_.micro_steps),
      std::vector<RowsBySource>(static_cast<size_t>(shape.layers),
                                RowsBySource(static_cast<size_t>(job_.layout.world_size()),
                                             std::vector<int64_t>(static_cast<size_t>(shape.experts)))));
  for (size_t i = record_at(first); i < begins_.size() && begins_[i] < end; ++i) {
    const RoutingRecord::Step& recorded = record_.steps()[i];
    const RecordedRows rows = record_.rows(i);
    for (int64_t source = 0; source < recorded.sources(); ++source) {
      const int64_t begin = begins_[i] + source * recorded.tokens;
      if (begin + recorded.tokens <= first || begin >= end) continue;
      const int64_t micro_step = source / recorded.ranks, rank = source % recorded.ranks;
      std::vector<const int32_t*> rows_of_layer;
      for (int64_t layer = 0; layer < shape.layers; ++layer)
        rows_of_layer.push_back(rows.of_source.data() +
                                ((rank * recorded.micro_steps + micro_step) * shape.layers + layer) * shape.experts);
      add_source(rows_of_layer, begin, recorded.tokens, first, step);
    }
  }
  return step;
}

}  // namespace conclave
