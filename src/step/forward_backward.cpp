#include "step/forward_backward.h"

#include <numeric>
#include <utility>

#include "device/device.h"
#include "model/rotary_options.h"
#include "step/selection_bias.h"

namespace conclave {
namespace {

constexpr size_t embedding_unit = 0;

RouterOptions router_options(const ModelConfig& config) {
  RouterOptions options;
  const MixtureConfig* mixture = config.mixture();
  if (mixture == nullptr) return options;
  options.top_k = mixture->top_k;
  options.scores = mixture->scores == MixtureConfig::Scores::sigmoid ? RouterScores::sigmoid : RouterScores::softmax;
  // A softmax over the chosen is the softmax over all, divided by the sum of the chosen.
  options.renormalize = mixture->renormalize || mixture->scores == MixtureConfig::Scores::softmax_of_chosen;
  options.scale = mixture->scaling_factor;
  options.groups = mixture->groups;
  options.top_groups = mixture->chosen_groups;
  options.best_of_group = mixture->group_score == MixtureConfig::GroupScore::best ? 1 : 2;
  return options;
}

std::vector<bool> units_that_stay_gathered(const ReshardRule& rule, const std::vector<Unit*>& units) {
  std::vector<bool> stays;
  stays.reserve(units.size());
  for (const Unit* unit : units) stays.push_back(rule.stays_gathered(unit->name()));
  return stays;
}

// The layer at which the backward pass ends: below it nothing is trained.
size_t first_layer_with_backward(const std::vector<Unit*>& units) {
  size_t unit = 0;
  while (unit + 1 < units.size() && units[unit]->is_frozen()) ++unit;
  return unit == embedding_unit ? 0 : unit - 1;
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
      selection_(make_selection(settings.selection, router_options(model.config()), model.config().mixtures(),
                                model.config().experts(), model.axes().world(), model.options().device)),
      capacity_(settings.capacity, model.axes().world()),
      experts_(model.axes().of(Axis::expert), model.config().experts(), settings.dispatch, clock_),
      embedding_(model.declarations().front()),
      head_(model.config(), model.declarations().back(), embedding_, settings.loss_chunk_tokens),
      first_backward_(first_layer_with_backward(units_)) {
  const ModelConfig& config = model.config();
  const MixtureOptions mixtures{.selection = *selection_,
                                .capacity = settings.capacity.factor > 0 ? &capacity_ : nullptr,
                                .experts = experts_,
                                .router = settings.router,
                                .jitter_noise = settings.jitter_noise,
                                .seed = settings.seed,
                                .assumed = assumed};
  Mixture::Place place;
  for (; place.layer < config.layer_count(); ++place.layer) {
    layers_.emplace_back(config, place, model.declarations()[place.layer + 1], settings.checkpointing, mixtures);
    if (config.layers[place.layer].mixture() != nullptr) ++place.mixture;
  }
  if (settings.offloads)
    offloaded_ = std::make_unique<ActivationStore>(
        device_of(model.options().device).make_offload_medium(settings.offload_folder),
        config.layer_count() - static_cast<int64_t>(first_backward_), settings.loading_horizon, clock_);
}

void ForwardBackward::take_parameters() {
  read_selection_bias(model_, *selection_);
}

void ForwardBackward::finish_step(const at::Tensor& count_LE) {
  selection_->finish_step(count_LE);
  write_selection_bias(model_, *selection_);
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
    for (size_t layer = layers_.size(); layer > first_backward_; --layer) visits.push_back(layer);
  return visits;  // the embedding's backward needs no weights
}

void ForwardBackward::begin_rotary(const MicroBatch& batch) {
  if (!rotary_.cos_SD.defined() || rotary_.cos_SD.size(0) != batch.sequence)
    rotary_ = rotary_table(batch.sequence, rotary_options(model_.config().rotary), model_.options().device);
  rotary_.position_T = batch.documents ? batch.documents->position_T : at::Tensor();
}

at::Tensor ForwardBackward::embed(const MicroBatch& batch) {
  const ClockScope clock(clock_, Phase::computing, embedding_unit);
  at::Tensor hidden_TH =
      embedding_.forward(schedule_.begin(embedding_unit).weights(), batch, model_.options().compute_dtype);
  schedule_.end(embedding_unit);
  return hidden_TH;
}

HeadWeights ForwardBackward::begin_head() {
  const UnitWeights own = schedule_.begin(head_unit()).weights();
  if (!model_.config().tie_word_embeddings) return head_.weights(own, {});
  return head_.weights(own, schedule_.begin(embedding_unit).weights());
}

void ForwardBackward::end_head() {
  schedule_.end(head_unit());
  if (model_.config().tie_word_embeddings) schedule_.end(embedding_unit);
}

HeadGradients ForwardBackward::head_gradients() {
  const bool tied = model_.config().tie_word_embeddings;
  return head_.gradients(units_[head_unit()]->gradients(),
                         tied ? units_[embedding_unit]->gradients() : UnitGradients());
}

std::optional<BalanceReduction> ForwardBackward::begin_balance(const std::vector<RoutingStatistics>& of_layers,
                                                               const MicroBatch& batch) const {
  std::vector<RoutingStatistics> of_mixtures;
  for (const RoutingStatistics& statistics : of_layers)
    if (statistics.count_E.defined()) of_mixtures.push_back(statistics);
  if (of_mixtures.empty()) return std::nullopt;
  return std::make_optional<BalanceReduction>(model_.axes().world(), of_mixtures, batch.tokens(),
                                              model_.options().device, settings_.aux_loss);
}

std::vector<RouterLossGradient> ForwardBackward::router_losses(const Balance& balance, double balance_scale) const {
  const ModelConfig& config = model_.config();
  std::vector<RouterLossGradient> losses(layers_.size());
  if (config.mixture() == nullptr) return losses;
  const at::Tensor probability_gradient_LE = balance.aux_gradient_LE * (settings_.aux_coefficient * balance_scale);
  int64_t mixture = 0;
  for (const int64_t layer : config.mixture_layers())
    losses[layer] = {probability_gradient_LE[mixture++], balance.z_gradient * settings_.z_coefficient * balance_scale};
  return losses;
}

MicroStepResult ForwardBackward::train(MicroBatch batch, const MicroStep& micro_step) {
  batch.trains = true;
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
      const UnitWeights weights = schedule_.begin(layer + 1).weights();
      hidden_TH =
          layers_[layer].forward(weights, std::move(hidden_TH), batch, rotary_, states[layer], statistics[layer]);
    }
    schedule_.end(layer + 1);
    if (layer < first_backward_)
      states[layer] = {};
    else if (offloaded_)
      offloaded_->put(static_cast<int64_t>(layer - first_backward_), std::move(states[layer].input_TH));
  }
  // Summed over the ranks while the head computes.
  std::optional<BalanceReduction> balance = begin_balance(statistics, batch);

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
    if (balance) result.balance = balance->finish();
  }
  const std::vector<RouterLossGradient> router_loss = router_losses(result.balance, micro_step.balance_scale);
  for (size_t layer = layers_.size(); layer-- > first_backward_;) {
    const ClockScope clock(clock_, Phase::computing, layer + 1);
    if (offloaded_) states[layer].input_TH = offloaded_->take(static_cast<int64_t>(layer - first_backward_));
    Unit& unit = schedule_.begin(layer + 1);
    grad_TH = layers_[layer].backward(unit.weights(), unit.gradients(), std::move(grad_TH), batch, rotary_,
                                      router_loss[layer], std::move(states[layer]));
    schedule_.end(layer + 1);
    schedule_.reduce(layer + 1, micro_step.first, micro_step.last);
  }
  const ClockScope clock(clock_, Phase::computing, embedding_unit);
  if (!units_[embedding_unit]->is_frozen()) {
    UnitGradients gradients = units_[embedding_unit]->gradients();
    embedding_.backward(gradients, grad_TH, batch);
    schedule_.reduce(embedding_unit, micro_step.first, micro_step.last);
  }
  schedule_.finish();
  return result;
}

at::Tensor ForwardBackward::forward_for_evaluation(const MicroBatch& batch, Balance& balance) {
  begin_rotary(batch);
  schedule_.start(visits(/*with_backward=*/false));
  at::Tensor hidden_TH = embed(batch);
  std::vector<RoutingStatistics> statistics(layers_.size());
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    const UnitWeights weights = schedule_.begin(layer + 1).weights();
    hidden_TH = layers_[layer].evaluate(weights, std::move(hidden_TH), batch, rotary_, statistics[layer]);
    schedule_.end(layer + 1);
  }
  if (std::optional<BalanceReduction> reduction = begin_balance(statistics, batch)) balance = reduction->finish();
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
