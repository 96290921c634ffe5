#include "moe/capacity.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/values.h"

namespace conclave {
namespace {

// This rank's choices, on the host.
struct HostChoices {
  at::Tensor expert_TK, score_TK;
  int64_t count() const { return expert_TK.numel(); }
  int32_t expert(int64_t i) const { return expert_TK.const_data_ptr<int32_t>()[i]; }
  // Scores are not negative, so their bits are ordered as they are.
  uint32_t score_bits(int64_t i) const { return std::bit_cast<uint32_t>(score_TK.const_data_ptr<float>()[i]); }
};

HostChoices choices_of(const Routing& routing) {
  const at::Tensor& expert_TK = routing.expert_of_choice_TK;
  return {to_host(expert_TK, at::zeros({}, at::kInt).expand(expert_TK.sizes())).contiguous(),
          to_host(routing.score_TE.gather(1, expert_TK.to(at::kLong)))};
}

using Counts = std::vector<int64_t>;

at::Tensor to_tensor(const Counts& counts, at::Device device) {
  return at::tensor(at::IntArrayRef(counts), at::kLong).to(device);
}

// `tensor`: of the host.
Counts to_counts(const at::Tensor& tensor) {
  const at::Tensor host = tensor.contiguous();
  return {host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel()};
}

// Each rank's counts, one after the other.
Counts gather(Communicator& world, const Counts& own, at::Device device) {
  at::Tensor all = at::empty({world.size() * static_cast<int64_t>(own.size())}, at::device(device).dtype(at::kLong));
  world.all_gather(all, to_tensor(own, device)).wait();
  return to_counts(to_host(all, to_tensor(own, at::kCPU).repeat(world.size())));
}

// What all ranks know of each other's choices.
struct Census {
  int64_t tokens = 0;
  Counts all_E;  // of each rank
  Counts total_E;
  std::vector<int> earlier;  // ranks whose samples come before this one's
};

Census take_census(Communicator& world, const Counts& count_E, int64_t tokens, int64_t first_sample,
                   at::Device device) {
  Counts own = count_E;
  own.push_back(tokens);
  own.push_back(first_sample);
  const Counts all = gather(world, own, device);
  const size_t experts = count_E.size(), width = experts + 2;
  Census census{0, {}, Counts(experts), {}};
  for (int rank = 0; rank < world.size(); ++rank) {
    const int64_t* of_rank = all.data() + rank * width;
    census.all_E.insert(census.all_E.end(), of_rank, of_rank + experts);
    for (size_t expert = 0; expert < experts; ++expert) census.total_E[expert] += of_rank[expert];
    census.tokens += of_rank[experts];
    if (of_rank[experts + 1] < first_sample) census.earlier.push_back(rank);
  }
  return census;
}

// The scores above which an expert keeps all, and how many it keeps of those that are equal.
struct Thresholds {
  std::vector<uint32_t> bits_E;
  Counts equal_E;
};

// Digit by digit, the highest first: the value of which there are no `capacity` higher ones, but with it there are.
Thresholds find_thresholds(const HostChoices& choices, const Census& census, int64_t capacity, Communicator& world,
                           at::Device device) {
  constexpr int64_t digits = 256;
  const size_t experts = census.total_E.size();
  Thresholds thresholds{std::vector<uint32_t>(experts, 0), Counts(experts)};
  for (size_t expert = 0; expert < experts; ++expert)
    thresholds.equal_E[expert] = std::min(capacity, census.total_E[expert]);
  for (int shift = 24; shift >= 0; shift -= 8) {
    const uint32_t known = shift == 24 ? 0 : ~uint32_t{0} << (shift + 8);
    Counts histogram(experts * digits);
    for (int64_t i = 0; i < choices.count(); ++i) {
      const uint32_t bits = choices.score_bits(i);
      const int32_t expert = choices.expert(i);
      if ((bits & known) == thresholds.bits_E[expert]) ++histogram[expert * digits + (bits >> shift & 255)];
    }
    at::Tensor sum = to_tensor(histogram, device);
    world.all_reduce(sum).wait();
    histogram = to_counts(to_host(sum, to_tensor(histogram, at::kCPU)));
    for (size_t expert = 0; expert < experts; ++expert) {
      int64_t digit = digits - 1;
      int64_t& left = thresholds.equal_E[expert];
      while (digit > 0 && histogram[expert * digits + digit] < left) left -= histogram[expert * digits + digit--];
      thresholds.bits_E[expert] |= static_cast<uint32_t>(digit) << shift;
    }
  }
  return thresholds;
}

// What is left of a quota after the ranks whose samples come first have taken theirs.
Counts left_after(const Counts& quota_E, const Counts& all, const std::vector<int>& earlier) {
  Counts left = quota_E;
  for (const int rank : earlier)
    for (size_t expert = 0; expert < left.size(); ++expert) left[expert] -= all[rank * left.size() + expert];
  return left;
}

}  // namespace

int64_t expert_capacity(double factor, int64_t tokens, int64_t top_k, int64_t experts) {
  return static_cast<int64_t>(
      std::ceil(factor * static_cast<double>(tokens) * static_cast<double>(top_k) / static_cast<double>(experts)));
}

double drop_rate(const at::Tensor& count_LE, int64_t capacity) {
  return ((count_LE - static_cast<double>(capacity)).clamp_min(0).sum() / count_LE.sum()).item<double>();
}

at::Tensor ExpertCapacity::apply(const Routing& routing, const TokenNumbers& tokens) const {
  const at::Device device = routing.expert_of_choice_TK.device();
  const HostChoices choices = choices_of(routing);
  const int64_t experts = routing.score_TE.size(1), top_k = choices.expert_TK.size(1);
  Counts count_E(static_cast<size_t>(experts));
  for (int64_t i = 0; i < choices.count(); ++i) ++count_E[choices.expert(i)];
  const int64_t first_sample =
      tokens.sample_of_B.empty() ? std::numeric_limits<int64_t>::max() : tokens.sample_of_B.front();
  const Census census = take_census(world_, count_E, choices.expert_TK.size(0), first_sample, device);
  const int64_t capacity = expert_capacity(options_.factor, census.tokens, top_k, experts);

  // Where the score is below the threshold nothing is kept, above it everything; at it the earliest, up to a quota.
  Thresholds thresholds;
  Counts quota_E;
  if (options_.policy == DropPolicy::probability) {
    thresholds = find_thresholds(choices, census, capacity, world_, device);
    Counts equal_E(static_cast<size_t>(experts));
    for (int64_t i = 0; i < choices.count(); ++i)
      equal_E[choices.expert(i)] += choices.score_bits(i) == thresholds.bits_E[choices.expert(i)];
    quota_E = left_after(thresholds.equal_E, gather(world_, equal_E, device), census.earlier);
  } else {
    quota_E = left_after(Counts(static_cast<size_t>(experts), capacity), census.all_E, census.earlier);
  }
  at::Tensor kept_TK = choices.expert_TK.clone();
  auto* kept = kept_TK.data_ptr<int32_t>();
  for (int64_t i = 0; i < choices.count(); ++i) {
    const int32_t expert = choices.expert(i);
    const uint32_t bits = choices.score_bits(i);
    if (options_.policy == DropPolicy::probability && bits != thresholds.bits_E[expert]) {
      if (bits < thresholds.bits_E[expert]) kept[i] = -1;
    } else if (quota_E[expert]-- <= 0) {
      kept[i] = -1;
    }
  }
  return kept_TK.to(device);
}

}  // namespace conclave
