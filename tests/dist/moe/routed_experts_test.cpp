// Every way from tokens to experts and back between processes, against all tokens in a plain loop on one rank.
#include "moe/routed_experts.h"
#include "capacity_reference.h"

#include <ATen/ATen.h>

#include "dist/world.h"
#include "memory/memory_category.h"
#include "moe/capacity.h"
#include "unit/moe/plain_experts.h"

namespace conclave {
namespace {

const bool counting = (install_counting_allocator(), true);

using testing::Answer;
using testing::expect_near;
using testing::in_double;
using testing::make_problem;
using testing::plain_loop;
using testing::Problem;
using testing::run_ranks;
using testing::seed;
using testing::Shape;
using testing::Skew;

AxisGroup everyone(const World& world) {
  AxisGroup group{{}, world.rank()};
  for (int rank = 0; rank < world.size(); ++rank) group.ranks.push_back(rank);
  return group;
}

struct Way {
  const char* name;
  DispatchSettings settings = {};
};

std::vector<Way> ways() {
  const SpillOptions eager{.threshold = 1.0, .least_rows = 1};
  return {{"all_to_all"},
          {"all_gather", {.dispatcher = DispatcherKind::all_gather}},
          {"shuffled", {.shuffles = true, .shuffle_seed = 3}},
          {"shuffled all_gather", {.dispatcher = DispatcherKind::all_gather, .shuffles = true, .shuffle_seed = 3}},
          {"two overlapping", {.chunks = 2}},
          {"five overlapping, all_gather", {.dispatcher = DispatcherKind::all_gather, .chunks = 5}},
          {"chunks", {.overload = OverloadPolicy::chunk, .max_tokens_per_rank_factor = 1.0}},
          {"shuffled chunks",
           {.shuffles = true, .shuffle_seed = 3, .overload = OverloadPolicy::chunk, .max_tokens_per_rank_factor = 1.2}},
          {"spill", {.overload = OverloadPolicy::spill, .spill = eager}},
          {"shuffled spill", {.shuffles = true, .shuffle_seed = 3, .overload = OverloadPolicy::spill, .spill = eager}}};
}

// Tokens are divided unevenly: rank i has a share that grows with i, and of more than two ranks the first has none.
struct Slice {
  int64_t begin, end;
};
Slice slice_of(int64_t tokens, int rank, int ranks) {
  const int64_t least = ranks == 2 ? 1 : 0;
  const auto shares = [&](int64_t i) { return i * (i - 1) / 2 + least * i; };  // of ranks 0 .. i - 1
  const auto boundary = [&](int64_t i) { return tokens * shares(i) / shares(ranks); };
  return {boundary(rank), boundary(rank + 1)};
}

at::Tensor tokens_of(const at::Tensor& tensor, Slice slice) {
  return tensor.narrow(0, slice.begin, slice.end - slice.begin).contiguous();
}

enum class Kept { everything, no_pre_activation, nothing };

struct Ran {
  Answer answer;
  std::vector<int64_t> rows_per_part;
};

Ran run(const Problem& p, const Way& way, Kept kept, Communicator& expert) {
  const int64_t experts = p.gate_up_EJH.size(0), local = experts / expert.size(), first = local * expert.rank();
  const Slice slice = slice_of(p.token_TH.size(0), expert.rank(), expert.size());
  const ExpertWeights weights{p.gate_up_EJH.narrow(0, first, local), p.down_EHI.narrow(0, first, local)};
  StepClock clock(0);
  const RoutedExperts routed(expert, experts, way.settings, clock);
  const RoutedTokens tokens{tokens_of(p.token_TH, slice), tokens_of(p.weight_TK, slice), tokens_of(p.expert_TK, slice)};

  Ran ran;
  RoutedExperts::Parts parts;
  ran.answer.out_TH = routed.forward(tokens, tokens_of(p.residual_TH, slice), weights,
                                     kept == Kept::everything ? PreActivation::kept : PreActivation::repeated, parts);
  for (const RoutedPart& part : parts) {
    int64_t rows = 0;
    for (const int64_t of_expert : part.plan.rows_per_expert) rows += of_expert;
    ran.rows_per_part.push_back(rows);
  }
  if (kept == Kept::nothing) parts.clear();
  // What is not written keeps the garbage.
  ran.answer.grad_gate_up_EJH = at::full_like(weights.gate_up_LJH, 1e30);
  ran.answer.grad_down_EHI = at::full_like(weights.down_LHI, 1e30);
  ExpertGradients gradients{{ran.answer.grad_gate_up_EJH}, {ran.answer.grad_down_EHI}};
  RoutedTokens again = tokens;
  if (!RoutedExperts::needs_tokens(parts)) again.token_TH.reset();
  const DispatchGradient gradient =
      routed.backward(again, tokens_of(p.grad_TH, slice), weights, gradients, std::move(parts));
  ran.answer.grad_token_TH = gradient.token_TH;
  ran.answer.grad_weight_TK = gradient.weight_TK;
  return ran;
}

void expect_equal(const Answer& actual, const Answer& expected, const Shape& s, const Communicator& expert) {
  const double relative = testing::relative_error_bound(s);
  const Slice slice = slice_of(s.tokens, expert.rank(), expert.size());
  const int64_t local = s.experts / expert.size();
  const auto own = [&](const at::Tensor& all) { return all.narrow(0, local * expert.rank(), local); };
  // The scale is that of all ranks: a rank alone may hold nothing but small values.
  const auto near = [&](const char* name, const at::Tensor& part, const at::Tensor& of_all, const at::Tensor& all) {
    const double scale = std::max(all.abs().max().item<double>(), 1e-30);
    expect_near(name, at::cat({part.flatten(), at::full({1}, scale)}),
                at::cat({of_all.flatten(), at::full({1}, scale, at::kDouble)}), relative);
  };
  near("output", actual.out_TH, tokens_of(expected.out_TH, slice), expected.out_TH);
  near("gradient of the tokens", actual.grad_token_TH, tokens_of(expected.grad_token_TH, slice),
       expected.grad_token_TH);
  near("gradient of the weights", actual.grad_weight_TK, tokens_of(expected.grad_weight_TK, slice),
       expected.grad_weight_TK);
  near("gradient of gate_up", actual.grad_gate_up_EJH, own(expected.grad_gate_up_EJH), expected.grad_gate_up_EJH);
  near("gradient of down", actual.grad_down_EHI, own(expected.grad_down_EHI), expected.grad_down_EHI);
}

class RoutedExpertsOf : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Worlds, RoutedExpertsOf, ::testing::Values(2, 4));

// `dropped`: of the choices, every so many-th.
TEST_P(RoutedExpertsOf, equal_a_plain_loop_whatever_the_way) {
  run_ranks(GetParam(), [](World& world) {
    const auto axis = world.communicator(everyone(world), "expert");
    const int64_t ranks = world.size();
    for (const Shape& s : std::vector<Shape>{{1, 8, 2, 8, 6},
                                             {23, ranks, 1, 7, 5},
                                             {29, 3 * ranks, 3, 8, 6},
                                             {40, 64, 2, 6, 4},
                                             {30, 128, 8, 5, 3},
                                             {50, 8, 1, 6, 4, Skew::one_expert},
                                             {37, 8, 2, 6, 4, Skew::one_expert}})
      for (const int64_t dropped : {0, 3}) {
        Problem problem = make_problem(s);
        if (dropped > 0) problem.expert_TK.view(-1).slice(0, 1, {}, dropped).fill_(-1);
        const Answer expected = plain_loop(in_double(problem));
        for (const Way& way : ways())
          for (const Kept kept : {Kept::everything, Kept::no_pre_activation, Kept::nothing}) {
            SCOPED_TRACE(fmt::format("seed {}: T={} E={} K={} dropped {}, {}, kept {}", seed, s.tokens, s.experts,
                                     s.top_k, dropped, way.name, static_cast<int>(kept)));
            const Ran ran = run(problem, way, kept, *axis);
            expect_equal(ran.answer, expected, s, *axis);
          }
      }
  });
}

// Oracle: the plain loop. Tolerance, of the norms: what moe/fp8_experts_test.cpp derives for the formats, with room for
// few tokens; and no less than a tenth of it, which only fp8 reaches.
TEST_P(RoutedExpertsOf, multiply_in_fp8_whatever_the_way) {
  run_ranks(GetParam(), [](World& world) {
    const auto axis = world.communicator(everyone(world), "expert");
    const Shape s{60, 8, 2, 48, 32};
    const Problem problem = make_problem(s);
    const Answer expected = plain_loop(in_double(problem));
    const Slice slice = slice_of(s.tokens, axis->rank(), axis->size());
    for (Way way : ways()) {
      SCOPED_TRACE(way.name);
      way.settings.products = ExpertPrecision::fp8;
      for (const Kept kept : {Kept::everything, Kept::nothing}) {
        const Answer actual = run(problem, way, kept, *axis).answer;
        if (slice.begin == slice.end) continue;
        const auto error = [&](const at::Tensor& one, const at::Tensor& all, const at::Tensor& without) {
          const at::Tensor exact = tokens_of(all - without, slice);
          return ((one - tokens_of(without, slice)).to(at::kDouble) - exact).norm().item<double>() /
                 exact.norm().item<double>();
        };
        const at::Tensor none = at::zeros_like(problem.token_TH);
        const double output = error(actual.out_TH, expected.out_TH, problem.residual_TH);
        const double gradient = error(actual.grad_token_TH, expected.grad_token_TH, none);
        EXPECT_LE(output, 0.15);
        EXPECT_GE(output, 0.01);
        EXPECT_LE(gradient, 0.25);
        EXPECT_GE(gradient, 0.02);
      }
    }
  });
}

// The two loads that users are told about: the rows of the busiest rank, and the memory of the rank that needs most for
// rows on their way, held against those of an even load.
TEST(Overload, is_levelled_by_spilling_and_bounded_by_chunks) {
  run_ranks(4, [](World& world) {
    const auto axis = world.communicator(everyone(world), "expert");
    const Shape s{1200, 64, 1, 96, 4};
    Problem p = make_problem(s);
    struct Needed {
      double rows, bytes;  // of the rank that needs most
    };
    const auto needed = [&](const Way& way) {
      constexpr auto dispatch = static_cast<int>(MemoryCategory::dispatch);
      const int64_t before = memory_report().now.of[dispatch];
      reset_memory_peaks();
      const Ran ran = run(p, way, Kept::nothing, *axis);
      const int64_t rows = *std::max_element(ran.rows_per_part.begin(), ran.rows_per_part.end());
      const at::Tensor most = at::tensor({rows, memory_report().peak_of.of[dispatch] - before}, at::kLong);
      axis->all_reduce(most, Reduction::max).wait();
      return Needed{most[0].item<double>(), most[1].item<double>()};
    };
    const Way none{"none"}, spill{"spill", {.overload = OverloadPolicy::spill, .spill = {.least_rows = 20}}},
        chunk{"chunk", {.overload = OverloadPolicy::chunk, .max_tokens_per_rank_factor = 1.25}};
    p.expert_TK.copy_((at::arange(s.tokens) % 64).unsqueeze(1));
    const double even_bytes = needed(none).bytes, mean = static_cast<double>(s.tokens) / 4;
    // All tokens to one expert; and shares of 64 experts that fall as 1 / rank (Zipf's law).
    for (const bool zipf : {false, true}) {
      SCOPED_TRACE(zipf ? "zipf" : "all to one");
      const at::Tensor share = zipf ? 1 / at::arange(1, 65, at::kDouble) : at::arange(64).eq(0).to(at::kDouble);
      at::Generator generator = at::detail::createCPUGenerator(seed);
      p.expert_TK.copy_(at::multinomial(share, s.tokens, true, generator).unsqueeze(1));
      const Needed overloaded = needed(none), spilled = needed(spill), divided = needed(chunk);
      EXPECT_GT(overloaded.rows / mean, zipf ? 2.0 : 3.9);
      EXPECT_GT(overloaded.bytes / even_bytes, zipf ? 1.5 : 2.0);
      EXPECT_LE(spilled.rows / mean, 1.15);
      EXPECT_LE(divided.rows / mean, 1.25);
      // A rank that sends what others compute has messages of its own besides: it is not quite the even load.
      EXPECT_LE(spilled.bytes / even_bytes, 1.4);
      EXPECT_LE(divided.bytes / even_bytes, 1.4);
    }
  });
}

// Oracle: one rank that has all tokens. Ranks hold their samples in the opposite order, and one of them has none: who
// is dropped follows from the data alone. Whole numbers: no tolerance.
TEST_P(RoutedExpertsOf, capacity_drops_the_same_choices_on_any_number_of_ranks) {
  run_ranks(GetParam(), [](World& world) {
    const auto all = world.communicator(everyone(world), "world");
    for (const int64_t experts : {2, 9, 64})
      for (const double factor : {0.5, 1.0, 2.0})
        for (const DropPolicy kept : {DropPolicy::probability, DropPolicy::position})
          for (const bool equal_scores : {false, true}) {
            SCOPED_TRACE(fmt::format("seed {}, E={} factor {} kept {} equal {}", seed, experts, factor,
                                     static_cast<int>(kept), equal_scores));
            constexpr int64_t sequence = 5;
            at::Generator generator = at::detail::createCPUGenerator(seed);
            std::vector<at::Tensor> parts;  // by sample, of which rank r has number (size - 1 - r)
            for (int sample = 0; sample < world.size(); ++sample) {
              parts.push_back(at::randn({sample == 2 ? 0 : sequence, experts}, generator) - at::arange(experts) * 0.5);
              if (equal_scores) parts.back().round_();
            }
            const Routing whole = route(at::cat(parts), {.top_k = 2});
            const at::Tensor expected = reference::apply_capacity(
                whole.expert_of_choice_TK, whole.score_TE.gather(1, whole.expert_of_choice_TK.to(at::kLong)), experts,
                {factor, kept});
            const int own = world.size() - 1 - world.rank();
            const std::vector<int64_t> samples =
                parts[own].size(0) == 0 ? std::vector<int64_t>{} : std::vector<int64_t>{own};
            const at::Tensor actual =
                ExpertCapacity({factor, kept}, *all).apply(route(parts[own], {.top_k = 2}), {samples, sequence});
            int64_t begin = 0;
            for (int sample = 0; sample < own; ++sample) begin += parts[sample].size(0);
            EXPECT_TRUE(actual.equal(expected.narrow(0, begin, actual.size(0))));
          }
  });
}

}  // namespace
}  // namespace conclave
