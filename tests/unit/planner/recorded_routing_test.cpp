// A record's sources, divided anew. Oracle: a plain list with one entry for each token, cut where the layout cuts it.
#include "planner/recorded_routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <numeric>
#include <random>

#include "base/error.h"
#include "mixtral_shape.h"
#include "planner/rank_loads.h"

namespace conclave {
namespace {

ModelConfig model_of(const RoutingShape& shape) {
  MixtralShape model;
  model.num_hidden_layers = shape.layers;
  model.num_local_experts = shape.experts;
  model.num_experts_per_tok = shape.choices;
  return model;
}

CheckedJob job_of(const RoutingShape& shape, int world, int64_t tokens, int64_t micro_steps,
                  int64_t expert_degree = 1) {
  Job job;
  job.data.micro_batch_size = 1;
  job.data.sequence_length = tokens;
  job.data.global_batch_size = world * micro_steps;
  job.parallel.expert_parallel_degree = expert_degree;
  return check_job(job, model_of(shape), world);
}

class Recorded : public ::testing::Test {
 protected:
  ~Recorded() override { std::filesystem::remove(path_); }
  void SetUp() override { content_ = routing_head(shape_); }

  // A step whose tokens choose at random, some experts more than others.
  void add_step(int64_t step, int64_t micro_steps, int64_t ranks, int64_t tokens) {
    RecordedRows rows{micro_steps, ranks, tokens, {}};
    rows.of_source.resize(static_cast<size_t>(micro_steps * ranks * shape_.layers * shape_.experts));
    for (int64_t rank = 0; rank < ranks; ++rank)
      for (int64_t i = 0; i < micro_steps * shape_.layers; ++i)
        for (int64_t token = 0; token < tokens; ++token) {
          const auto first = static_cast<int64_t>(random_() % 3 == 0 ? 0 : random_() % shape_.experts);
          for (int64_t k = 0; k < shape_.choices; ++k)
            ++rows.of_source[(rank * micro_steps * shape_.layers + i) * shape_.experts + (first + k) % shape_.experts];
        }
    steps_.push_back(rows);
    content_ += routing_record(shape_, step, rows);
  }
  RoutingRecord record() {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << content_;
    return RoutingRecord(path_);
  }
  // Of one layer, everything that was recorded.
  std::vector<int64_t> totals(int64_t layer) const {
    std::vector<int64_t> sum(static_cast<size_t>(shape_.experts));
    for (const RecordedRows& rows : steps_)
      for (size_t i = 0; i < rows.of_source.size(); ++i)
        if (static_cast<int64_t>(i) / shape_.experts % shape_.layers == layer)
          sum[i % shape_.experts] += rows.of_source[i];
    return sum;
  }

  RoutingShape shape_{3, 8, 2};
  std::mt19937 random_{11};
  std::string content_;
  std::vector<RecordedRows> steps_;

 private:
  std::filesystem::path path_ =
      std::filesystem::temp_directory_path() / ("conclave-recorded-" + std::to_string(::getpid()) + ".bin");
};

TEST_F(Recorded, layout_of_the_record_gives_each_source_its_own_rows) {
  add_step(1, 2, 4, 30);
  add_step(2, 2, 4, 30);
  const RoutingRecord file = record();
  const CheckedJob job = job_of(shape_, 4, 30, 2);
  const RecordedRouting routing(file, job);
  ASSERT_EQ(routing.steps(), 2);
  for (int64_t step = 0; step < 2; ++step) {
    const StepRows rows = routing.step(step);
    EXPECT_EQ(rows.first_recorded, step + 1);
    for (int64_t m = 0; m < 2; ++m)
      for (int64_t layer = 0; layer < 3; ++layer)
        for (int64_t rank = 0; rank < 4; ++rank)
          for (int64_t expert = 0; expert < 8; ++expert)
            EXPECT_EQ(rows.of_micro_step[m][layer][rank][expert],
                      steps_[step].of_source[((rank * 2 + m) * 3 + layer) * 8 + expert]);
  }
}

// Fewer ranks with more tokens each: a rank has the sum of neighbours, the last of one micro-step and the first of the
// next included.
TEST_F(Recorded, sources_that_come_together_are_added_up) {
  add_step(1, 2, 4, 30);
  const RoutingRecord file = record();
  const CheckedJob job = job_of(shape_, 2, 60, 2);
  const StepRows rows = RecordedRouting(file, job).step(0);
  for (int64_t m = 0; m < 2; ++m)
    for (int64_t layer = 0; layer < 3; ++layer)
      for (int64_t rank = 0; rank < 2; ++rank)
        for (int64_t expert = 0; expert < 8; ++expert) {
          const auto of = [&](int64_t old) { return steps_[0].of_source[((old * 2 + m) * 3 + layer) * 8 + expert]; };
          EXPECT_EQ(rows.of_micro_step[m][layer][rank][expert], of(2 * rank) + of(2 * rank + 1));
        }
}

// Whatever the cut: every source has the choices of its tokens, and every expert keeps its rows.
TEST_F(Recorded, totals_are_exact_under_any_layout) {
  for (int64_t step = 1; step <= 6; ++step) add_step(step, 1 + step % 2, 2 + step % 3, 24);
  const RoutingRecord file = record();
  const int64_t all = std::accumulate(file.steps().begin(), file.steps().end(), int64_t{0},
                                      [](int64_t sum, const auto& step) { return sum + step.tokens_of_all(); });
  for (const auto& [world, tokens, micro_steps] :
       {std::tuple(1, 24, 1), {2, 12, 1}, {3, 8, 2}, {4, 7, 1}, {8, 5, 3}, {1, 100, 1}, {2, 24, 2}, {16, 1, 1}}) {
    SCOPED_TRACE(::testing::Message() << world << " ranks, " << tokens << " tokens, " << micro_steps << " micro-steps");
    const CheckedJob job = job_of(shape_, world, tokens, micro_steps);
    const RecordedRouting routing(file, job);
    EXPECT_EQ(routing.steps(), all / (world * tokens * micro_steps));
    EXPECT_EQ(routing.tokens_left_over(), all % (world * tokens * micro_steps));
    std::vector<std::vector<int64_t>> sum(3, std::vector<int64_t>(8));
    for (int64_t step = 0; step < routing.steps(); ++step)
      for (const auto& layers : routing.step(step).of_micro_step)
        for (size_t layer = 0; layer < 3; ++layer)
          for (const std::vector<int64_t>& source : layers[layer]) {
            EXPECT_EQ(std::accumulate(source.begin(), source.end(), int64_t{0}), tokens * 2);
            for (size_t expert = 0; expert < 8; ++expert) {
              EXPECT_GE(source[expert], 0);
              sum[layer][expert] += source[expert];
            }
          }
    if (routing.tokens_left_over() > 0) continue;
    for (int64_t layer = 0; layer < 3; ++layer) EXPECT_EQ(sum[layer], totals(layer));
  }
}

TEST_F(Recorded, source_that_is_cut_spreads_its_rows_evenly) {
  const auto parts = divide_rows({100, 0, 7, 53}, {20, 20, 40}, 2);
  EXPECT_EQ(parts, (std::vector<std::vector<int64_t>>{{25, 0, 2, 13}, {25, 0, 2, 13}, {50, 0, 3, 27}}));
}

TEST_F(Recorded, of_another_model_or_too_short_is_refused) {
  add_step(1, 1, 2, 10);
  const RoutingRecord file = record();
  const auto refusal = [&](const CheckedJob& job) -> std::string {
    try {
      const RecordedRouting routing(file, job);
      return "";
    } catch (const UserError& error) {
      return error.what();
    }
  };
  EXPECT_THAT(refusal(job_of({3, 8, 1}, 2, 10, 1)), ::testing::HasSubstr("3 layers, 8 experts and 2 choices"));
  EXPECT_THAT(refusal(job_of(shape_, 2, 11, 1)), ::testing::HasSubstr("has 20 tokens, but one step of the job has 22"));
}

// Oracle of what is kept: the first rows of a list in the order of ranks; of what is dropped in all: each expert's rows
// beyond its capacity.
TEST(DroppedRows, are_those_beyond_the_capacity) {
  const RowsBySource rows = {{5, 1, 0}, {4, 2, 9}, {3, 3, 1}};
  RowsBySource by_position = rows, by_probability = rows;
  EXPECT_EQ(drop_rows(by_position, 7, DropPolicy::position), 5 + 0 + 3);
  EXPECT_EQ(by_position, (RowsBySource{{5, 1, 0}, {2, 2, 7}, {0, 3, 0}}));
  EXPECT_EQ(drop_rows(by_probability, 7, DropPolicy::probability), 5 + 0 + 3);
  for (const size_t expert : {0, 2})
    EXPECT_EQ(by_probability[0][expert] + by_probability[1][expert] + by_probability[2][expert], 7);
  EXPECT_EQ(by_probability[0][0], 3);  // 7 * 5 / 12
}

// By hand: two groups of two ranks, two experts each.
TEST(RankLoads, find_the_busiest_rank_of_each_layer) {
  StepRows step;
  step.of_micro_step = {{{{4, 0, 1, 1}, {4, 0, 1, 1}, {1, 1, 2, 2}, {1, 1, 2, 2}},
                         {{1, 1, 2, 2}, {1, 1, 2, 2}, {6, 0, 0, 0}, {6, 0, 0, 0}}}};
  const CheckedJob job = job_of({2, 4, 2}, 4, 3, 1, 2);
  const RankLoads loads(step, job, std::nullopt);
  EXPECT_EQ(loads.busiest_in(0, 0), 0) << "8 rows of one expert before 8 of two";
  EXPECT_EQ(loads.busiest_in(0, 1), 2);
  EXPECT_DOUBLE_EQ(loads.imbalance(), (8 / 6.0 + 8 / 6.0 + 8 / 6.0 + 12 / 6.0) / 4);
  EXPECT_EQ(loads.lent_share(), 0);
  const RankLoads lending(step, job, SpillOptions{1.5, 1});
  EXPECT_EQ(lending.lent_share(), 6 / 48.0) << "half of the 12 rows of one group in the second layer";
}

}  // namespace
}  // namespace conclave
