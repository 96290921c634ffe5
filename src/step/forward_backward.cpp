#include "step/forward_backward.h"

#include <numeric>
#include <utility>

#include "device/device.h"
#include "kernels/embedding.h"
#include "memory/memory_category.h"

namespace conclave {
namespace {

constexpr size_t embedding_unit = 0;

std::vector<bool> units_that_stay_gathered(const ReshardRule& rule, const std::vector<Unit*>& units) {
  std::vector<bool> stays;
  stays.reserve(units.size());
  for (const Unit* unit : units) stays.push_back(rule.stays_gathered(unit->name()));
  return stays;
}

}  // namespace

void MicroStepResult::set_losses(std::vector<double> losses) {
  loss_of_part = std::move(losses);
  loss_sum = std::accumulate(loss_of_part.begin(), loss_of_part.end(), 0.0);
}

ForwardBackward::ForwardBackward(ParallelModel& model, const StepSettings& settings, const AssumedChoices* assumed)
    : model_(model),
      settings_(settings),
      units_(model.units()),
      clock_(units_.size(), device_of(model.options().device).time()),
      schedule_(units_, {settings.prefetch_units, units_that_stay_gathered(settings.reshard_after_forward, units_)},
                clock_),
      selection_(make_selection(settings.selection, {.top_k = model.config().num_experts_per_tok},
                                model.config().num_hidden_layers, model.config().num_local_experts,
                                model.axes().world(), model.options().device)),
      capacity_(settings.capacity, model.axes().world()),
      experts_(model.axes().of(Axis::expert), model.config().num_local_experts, settings.dispatch, clock_),
      head_(model.config(), settings.loss_chunk_tokens) {
  const LayerOptions options{settings.checkpointing, settings.router, settings.jitter_noise, settings.seed, assumed};
  const ExpertCapacity* capacity = settings.capacity.factor > 0 ? &capacity_ : nullptr;
  for (int64_t layer = 0; layer < model.config().num_hidden_layers; ++layer)
    layers_.emplace_back(model.config(), layer, *selection_, capacity, experts_, options);
  if (settings.offloads)
    offloaded_ = std::make_unique<ActivationStore>(
        device_of(model.options().device).make_offload_medium(settings.offload_folder),
        model.config().num_hidden_layers, settings.loading_horizon, clock_);
}

void ForwardBackward::reserve_offload(int64_t tokens) {
  if (!offloaded_) return;
  const auto item = static_cast<int64_t>(c10::elementSize(model_.options().compute_dtype));
  offloaded_->reserve(tokens * model_.config().hidden_size * item);
}

std::vector<size_t> ForwardBackward::visits(bool with_backward) const {
  std::vector<size_t> visits;
  for (size_t unit = 0; unit <= head_unit(); ++unit) visits.push_back(unit);
  if (model_.config().tie_word_embeddings) visits.push_back(embedding_unit);  // the head projects with its table
  if (with_backward)
    for (size_t layer = layers_.size(); layer >= 1; --layer) visits.push_back(layer);
  return visits;  // the embedding's backward needs no weights
}

void ForwardBackward::begin_rotary(const MicroBatch& batch) {
  if (rotary_.cos_SD.defined() && rotary_.cos_SD.size(0) == batch.sequence) return;
  const ModelConfig& config = model_.config();
  rotary_ = rotary_table(batch.sequence, config.head_dim, config.rope_theta, model_.options().device);
}

at::Tensor ForwardBackward::embed(const MicroBatch& batch) {
  const ClockScope clock(clock_, Phase::computing, embedding_unit);
  Unit& embedding = schedule_.begin(embedding_unit);
  MemoryScope scope(MemoryCategory::activations);
  at::Tensor hidden_TH = at::empty({batch.tokens(), model_.config().hidden_size},
                                   at::device(model_.options().device).dtype(model_.options().compute_dtype));
  embedding_forward(hidden_TH, embedding.weights()[0], batch.token_T);
  schedule_.end(embedding_unit);
  return hidden_TH;
}

HeadWeights ForwardBackward::begin_head() {
  const std::vector<at::Tensor> weights = schedule_.begin(head_unit()).weights();
  if (!model_.config().tie_word_embeddings) return {weights[0], weights[1]};
  return {weights[0], schedule_.begin(embedding_unit).weights()[0]};
}

void ForwardBackward::end_head() {
  schedule_.end(head_unit());
  if (model_.config().tie_word_embeddings) schedule_.end(embedding_unit);
}

HeadGradients ForwardBackward::head_gradients() {
  const std::vector<Gradient> gradients = units_[head_unit()]->gradients();
  if (!model_.config().tie_word_embeddings) return {gradients[0], gradients[1]};
  return {gradients[0], units_[embedding_unit]->gradients()[0]};
}

MicroStepResult ForwardBackward::train(const MicroBatch& batch, const MicroStep& micro_step) {
  reserve_offload(batch.tokens());
  begin_rotary(batch);
  schedule_.start(visits(/*with_backward=*/true));
  MicroStepResult result;

  at::Tensor hidden_TH = embed(batch);
  std::vector<LayerState> states(layers_.size());
  std::vector<RoutingStatistics> statistics(layers_.size());
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const ClockScope clock(clock_, Phase::computing, layer + 1);
    {
      const LayerWeights weights(schedule_.begin(layer + 1).weights());
      hidden_TH =
          layers_[layer].forward(weights, std::move(hidden_TH), batch, rotary_, states[layer], statistics[layer]);
    }
    schedule_.end(layer + 1);
    if (offloaded_) offloaded_->put(static_cast<int64_t>(layer), std::move(states[layer].input_TH));
  }
  // Summed over the ranks while the head computes.
  BalanceReduction balance(model_.axes().world(), statistics, batch.tokens(), model_.options().device,
                           settings_.aux_loss);

  // The head goes forward and backward at once; what was its input is now the gradient.
  {
    const ClockScope clock(clock_, Phase::computing, head_unit());
    result.set_losses(head_.losses_with_gradient_(hidden_TH, {batch.target_T, batch.part_ends()}, micro_step.loss_scale,
                                                  begin_head(), head_gradients()));
    end_head();
    schedule_.reduce(head_unit(), micro_step.first, micro_step.last);
  }
  at::Tensor grad_TH = std::move(hidden_TH);

  {
    const ClockScope clock(clock_, Phase::reduce, clock_.whole_step());
    result.balance = balance.finish();
  }
  const at::Tensor probability_gradient_LE =
      result.balance.aux_gradient_LE * (settings_.aux_coefficient * micro_step.balance_scale);
  RouterLossGradient router_loss;
  router_loss.logsumexp_square = result.balance.z_gradient * settings_.z_coefficient * micro_step.balance_scale;
  for (size_t layer = layers_.size(); layer-- > 0;) {
    const ClockScope clock(clock_, Phase::computing, layer + 1);
    if (offloaded_) states[layer].input_TH = offloaded_->take(static_cast<int64_t>(layer));
    router_loss.probability_E = probability_gradient_LE[static_cast<int64_t>(layer)];
    Unit& unit = schedule_.begin(layer + 1);
    grad_TH = layers_[layer].backward(LayerWeights(unit.weights()), LayerGradients(unit.gradients()),
                                      std::move(grad_TH), batch, rotary_, router_loss, std::move(states[layer]));
    schedule_.end(layer + 1);
    schedule_.reduce(layer + 1, micro_step.first, micro_step.last);
  }
  const ClockScope clock(clock_, Phase::computing, embedding_unit);
  embedding_backward(units_[embedding_unit]->gradients()[0].zeroed(), grad_TH, batch.token_T);
  schedule_.reduce(embedding_unit, micro_step.first, micro_step.last);
  schedule_.finish();
  return result;
}

at::Tensor ForwardBackward::forward_for_evaluation(const MicroBatch& batch, Balance& balance) {
  begin_rotary(batch);
  schedule_.start(visits(/*with_backward=*/false));
  at::Tensor hidden_TH = embed(batch);
  std::vector<RoutingStatistics> statistics(layers_.size());
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const LayerWeights weights(schedule_.begin(layer + 1).weights());
    hidden_TH = layers_[layer].evaluate(weights, std::move(hidden_TH), batch, rotary_, statistics[layer]);
    schedule_.end(layer + 1);
  }
  balance =
      BalanceReduction(model_.axes().world(), statistics, batch.tokens(), model_.options().device, settings_.aux_loss)
          .finish();
  return hidden_TH;
}

MicroStepResult ForwardBackward::evaluate(const MicroBatch& batch) {
  MicroStepResult result;
  const at::Tensor hidden_TH = forward_for_evaluation(batch, result.balance);
  result.set_losses(head_.losses(hidden_TH, {batch.target_T, batch.part_ends()}, begin_head()));
  end_head();
  schedule_.finish();
  return result;
}

ForwardBackward::Traced ForwardBackward::trace(const MicroBatch& batch) {
  Traced traced;
  const at::Tensor hidden_TH = forward_for_evaluation(batch, traced.result.balance);
  traced.rotary = rotary_;
  {
    const HeadWeights weights = begin_head();
    traced.result.set_losses(head_.losses(hidden_TH, {batch.target_T, batch.part_ends()}, weights));
    traced.logits_TV = head_.logits(hidden_TH, weights);
  }
  end_head();
  schedule_.finish();
  return traced;
}

}  // namespace conclave
