#include "operators/part_tensors.h"

#include <ATen/ATen.h>

#include "base/error.h"

namespace conclave {
namespace {

// Of a plan: its numbers, its spill, its orders.
constexpr size_t orders_of_a_plan = 5;
constexpr size_t tensors_of_a_plan = 2 + orders_of_a_plan;
// Of a part: two plans (the second of what follows a shuffle), its numbers, its rows, their weights, the
// pre-activation.
constexpr size_t tensors_of_a_part = 2 * tensors_of_a_plan + 4;

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

std::array<at::Tensor DispatchPlan::*, orders_of_a_plan> orders() {
  return {&DispatchPlan::row_of_choice_TK, &DispatchPlan::token_of_row_R, &DispatchPlan::choice_of_row_R,
          &DispatchPlan::arrival_of_row_R, &DispatchPlan::row_of_arrival_R};
}

std::array<int64_t DispatchPlan::*, 3> sizes() {
  return {&DispatchPlan::tokens, &DispatchPlan::top_k, &DispatchPlan::places_per_rank};
}

std::array<std::vector<int64_t> DispatchPlan::*, 3> lists() {
  return {&DispatchPlan::sent_per_rank, &DispatchPlan::received_per_rank, &DispatchPlan::rows_per_expert};
}

// What is undefined is an empty tensor, and the numbers say so.
class Writer {
 public:
  explicit Writer(std::vector<at::Tensor>& tensors) : tensors_(tensors) {}

  void put(const at::Tensor& tensor, Numbers& numbers) {
    numbers.put(tensor.defined() ? 1 : 0);
    tensors_.push_back(tensor.defined() ? tensor : at::empty({0}, tensors_[0].options()));
  }
  void put(const DispatchPlan& plan) {
    Numbers numbers;
    const size_t place = tensors_.size();
    tensors_.resize(place + 1);
    for (const auto size : sizes()) numbers.put(plan.*size);
    for (const auto list : lists()) numbers.put(plan.*list);
    tensors_.push_back(numbers_of(plan.spill.get()));
    for (const auto order : orders()) put(plan.*order, numbers);
    tensors_[place] = numbers.tensor();
  }

 private:
  std::vector<at::Tensor>& tensors_;
};

class Reader {
 public:
  Reader(const std::vector<at::Tensor>& tensors, size_t next) : tensors_(tensors), next_(next) {}

  const at::Tensor& take() { return tensors_.at(next_++); }
  void take(at::Tensor& tensor, Numbers& numbers) {
    const at::Tensor& stored = take();
    if (numbers.take() != 0) tensor = stored;
  }
  void take(DispatchPlan& plan) {
    Numbers numbers(take());
    for (const auto size : sizes()) plan.*size = numbers.take();
    for (const auto list : lists()) plan.*list = numbers.take_list();
    plan.spill = spill_of(take());
    for (const auto order : orders()) take(plan.*order, numbers);
  }

 private:
  const std::vector<at::Tensor>& tensors_;
  size_t next_;
};

}  // namespace

std::vector<at::Tensor> to_tensors(const RoutedExperts::Parts& parts, const at::Tensor& expert_of_choice_TK) {
  std::vector<at::Tensor> tensors{expert_of_choice_TK};
  Writer writer(tensors);
  for (const RoutedPart& part : parts) {
    writer.put(part.plan);
    writer.put(part.plan.after_shuffle ? *part.plan.after_shuffle : DispatchPlan{});
    Numbers numbers;
    const size_t place = tensors.size();
    tensors.resize(place + 1);
    for (const int64_t number : {part.tokens.begin, part.tokens.count, int64_t{part.plan.after_shuffle != nullptr}})
      numbers.put(number);
    for (const at::Tensor* tensor : {&part.rows.row_RH, &part.rows.weight_R, &part.gate_up_RJ})
      writer.put(*tensor, numbers);
    tensors[place] = numbers.tensor();
  }
  return tensors;
}

RoutedExperts::Parts parts_of(const std::vector<at::Tensor>& tensors) {
  check_invariant(!tensors.empty() && (tensors.size() - 1) % tensors_of_a_part == 0,
                  "parts are 1 + {} tensors each, not {}", tensors_of_a_part, tensors.size());
  RoutedExperts::Parts parts;
  for (size_t first = 1; first < tensors.size(); first += tensors_of_a_part) {
    RoutedPart& part = parts.emplace_back();
    Reader reader(tensors, first);
    reader.take(part.plan);
    auto after_shuffle = std::make_shared<DispatchPlan>();
    reader.take(*after_shuffle);
    Numbers numbers(reader.take());
    part.tokens.begin = numbers.take();
    part.tokens.count = numbers.take();
    if (numbers.take() != 0) part.plan.after_shuffle = std::move(after_shuffle);
    for (at::Tensor* tensor : {&part.rows.row_RH, &part.rows.weight_R, &part.gate_up_RJ}) reader.take(*tensor, numbers);
  }
  return parts;
}

at::Tensor choices_of(const std::vector<at::Tensor>& tensors) {
  return tensors.at(0);
}

}  // namespace conclave
