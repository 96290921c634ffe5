#include "operators/part_tensors.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace conclave {
namespace {

constexpr size_t tensors_of_a_part = 10;

// Written and read in the same order.
class Numbers {
 public:
  Numbers() = default;
  explicit Numbers(const at::Tensor& tensor)
      : values_(tensor.const_data_ptr<int64_t>(), tensor.const_data_ptr<int64_t>() + tensor.numel()) {}

  void put(int64_t value) { values_.push_back(value); }
  void put(const std::vector<int64_t>& values) {
    put(static_cast<int64_t>(values.size()));
    values_.insert(values_.end(), values.begin(), values.end());
  }
  int64_t take() {
    check_invariant(next_ < values_.size(), "{} numbers of a part, and one more was asked for", values_.size());
    return values_[next_++];
  }
  std::vector<int64_t> take_list() {
    std::vector<int64_t> list(static_cast<size_t>(take()));
    for (int64_t& value : list) value = take();
    return list;
  }
  at::Tensor tensor() const { return at::tensor(values_, at::kLong); }

 private:
  std::vector<int64_t> values_;
  size_t next_ = 0;
};

at::Tensor numbers_of(const SpillPlan* spill) {
  Numbers numbers;
  if (spill != nullptr) {
    numbers.put(spill->experts_per_rank);
    numbers.put(static_cast<int64_t>(spill->shares_of_expert.size()));
    for (const auto& shares : spill->shares_of_expert) {
      numbers.put(static_cast<int64_t>(shares.size()));
      for (const SpillPlan::Share& share : shares) {
        numbers.put(share.rank);
        numbers.put(share.begin);
        numbers.put(share.end);
      }
    }
  }
  return numbers.tensor();
}

std::shared_ptr<const SpillPlan> spill_of(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return nullptr;
  Numbers numbers(tensor);
  auto spill = std::make_shared<SpillPlan>();
  spill->experts_per_rank = numbers.take();
  spill->shares_of_expert.resize(static_cast<size_t>(numbers.take()));
  for (auto& shares : spill->shares_of_expert) {
    shares.resize(static_cast<size_t>(numbers.take()));
    for (SpillPlan::Share& share : shares) {
      share.rank = static_cast<int>(numbers.take());
      share.begin = numbers.take();
      share.end = numbers.take();
    }
  }
  return spill;
}

}  // namespace

std::vector<at::Tensor> to_tensors(const RoutedExperts::Parts& parts, const at::Tensor& expert_of_choice_TK) {
  std::vector<at::Tensor> tensors{expert_of_choice_TK};
  for (const RoutedPart& part : parts) {
    const DispatchPlan& plan = part.plan;
    check_invariant(plan.after_shuffle == nullptr && plan.places_per_rank == 0,
                    "a plan of all_gather or of the global token shuffle has no form as tensors");
    const std::array<at::Tensor, 8> maybe{plan.row_of_choice_TK, plan.token_of_row_R,   plan.choice_of_row_R,
                                          plan.arrival_of_row_R, plan.row_of_arrival_R, part.rows.row_RH,
                                          part.rows.weight_R,    part.gate_up_RJ};
    Numbers numbers;
    for (const int64_t number : {part.tokens.begin, part.tokens.count, plan.tokens, plan.top_k}) numbers.put(number);
    for (const auto* list : {&plan.sent_per_rank, &plan.received_per_rank, &plan.rows_per_expert}) numbers.put(*list);
    for (const at::Tensor& tensor : maybe) numbers.put(tensor.defined() ? 1 : 0);
    tensors.push_back(numbers.tensor());
    tensors.push_back(numbers_of(plan.spill.get()));
    for (const at::Tensor& tensor : maybe)
      tensors.push_back(tensor.defined() ? tensor : at::empty({0}, expert_of_choice_TK.options()));
    static_assert(std::tuple_size_v<decltype(maybe)> + 2 == tensors_of_a_part);
  }
  return tensors;
}

RoutedExperts::Parts parts_of(const std::vector<at::Tensor>& tensors) {
  check_invariant(!tensors.empty() && (tensors.size() - 1) % tensors_of_a_part == 0,
                  "parts are 1 + {} tensors each, not {}", tensors_of_a_part, tensors.size());
  RoutedExperts::Parts parts;
  for (size_t first = 1; first < tensors.size(); first += tensors_of_a_part) {
    RoutedPart& part = parts.emplace_back();
    DispatchPlan& plan = part.plan;
    Numbers numbers(tensors[first]);
    for (int64_t* number : {&part.tokens.begin, &part.tokens.count, &plan.tokens, &plan.top_k})
      *number = numbers.take();
    for (auto* list : {&plan.sent_per_rank, &plan.received_per_rank, &plan.rows_per_expert})
      *list = numbers.take_list();
    plan.spill = spill_of(tensors[first + 1]);
    size_t place = first + 2;
    for (at::Tensor* tensor :
         {&plan.row_of_choice_TK, &plan.token_of_row_R, &plan.choice_of_row_R, &plan.arrival_of_row_R,
          &plan.row_of_arrival_R, &part.rows.row_RH, &part.rows.weight_R, &part.gate_up_RJ}) {
      if (numbers.take() != 0) *tensor = tensors[place];
      ++place;
    }
  }
  return parts;
}

at::Tensor choices_of(const std::vector<at::Tensor>& tensors) {
  return tensors.at(0);
}

}  // namespace conclave
