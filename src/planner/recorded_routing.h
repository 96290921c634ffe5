// A run's recorded routing (moe/routing_record.h), divided among the ranks of any layout.
//
// The record's sources (a rank in a micro-step) follow each other as the data does: step by step, micro-step by
// micro-step, rank by rank. Laid end to end they are one stream of tokens, which a job cuts anew: into its own steps,
// micro-steps and ranks. A source that is cut spreads the rows of each expert evenly over its tokens. So every part has
// as many rows as its tokens have choices, and what the parts of a source have of an expert adds up to what it had.
#pragma once

#include <memory>
#include <vector>

#include "mesh/checked_job.h"
#include "moe/choices.h"
#include "moe/routing_record.h"

namespace conclave {

// The rows of one step: of all ranks of the world.
struct StepRows {
  int64_t first_recorded = 0;                            // the step of the record in which the tokens begin
  std::vector<std::vector<RowsBySource>> of_micro_step;  // [micro-steps][layers]
};

class RecordedRouting {
 public:
  // A UserError if the record is damaged, of another model, or too short for one step. `job` and `record` outlive it.
  RecordedRouting(const RoutingRecord& record, const CheckedJob& job);

  // Whole steps of the job that the recorded tokens are enough for; what is left over is in none.
  int64_t steps() const { return tokens_ / job_.tokens_per_step(); }
  int64_t first_recorded(int64_t step) const { return record_.steps()[record_at(step * job_.tokens_per_step())].step; }
  StepRows step(int64_t index) const;
  int64_t tokens_left_over() const { return tokens_ % job_.tokens_per_step(); }

 private:
  size_t record_at(int64_t token) const;
  void add_source(const std::vector<const int32_t*>& rows_of_layer, int64_t begin, int64_t tokens, int64_t first_token,
                  StepRows& step) const;

  const RoutingRecord& record_;
  const CheckedJob& job_;
  std::vector<int64_t> begins_;  // the first token of each recorded step
  int64_t tokens_ = 0;
};

// Of one source's rows, those of parts of it: of each expert and part, in the order of the parts. `tokens`: of each
// part, which add up to the source's.
std::vector<std::vector<int64_t>> divide_rows(const std::vector<int64_t>& rows_of_expert,
                                              const std::vector<int64_t>& tokens, int64_t choices);

// What an expert takes no more of (moe.capacity_factor) is taken away, from the last ranks first with drop_policy:
// position, else from all ranks alike: which choices are less probable no count says. Returns the rows taken away.
int64_t drop_rows(RowsBySource& rows, int64_t capacity, DropPolicy policy);

// The rows of the expert group of which `rank` is a member, of one layer.
RowsBySource group_of(const RowsBySource& world, const Layout& layout, int rank);

}  // namespace conclave
