#include "generate/cached_model.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "kernels/linear.h"
#include "kernels/values.h"
#include "memory/memory_category.h"
#include "model/low_rank_adapter.h"
#include "model/rotary_options.h"

namespace conclave {
namespace {

constexpr size_t embedding_unit = 0;

// Tokens go straight to their experts: what lends experts to idle ranks or divides the rows pays for many rows only.
DispatchSettings plain_dispatch(DispatchSettings settings) {
  settings.overload = OverloadPolicy::none;
  settings.shuffles = false;
  settings.chunks = 1;
  return settings;
}

at::Tensor on_host(const std::vector<int64_t>& values) {
  const at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), tensor.data_ptr<int64_t>());
  return tensor;
}

// Latent attention reads kv_b's matrix itself (LatentAttention::extend), so an adapter beside it is added to the
// matrix.
void fold_into_matrix(const UnitDeclaration& unit, UnitWeights& weights) {
  const std::string name = unit.name + ".attention.kv_b";
  if (!has_adapter(unit, name)) return;
  for (size_t i = 0; i < weights.size(); ++i) {
    if (unit.parameters[i].name != name) continue;
    const LowRank adapter = LowRankAdapter(name, 0, unit).matrices(weights);
    const at::ScalarType dtype = weights[i].scalar_type();
    weights[i] = weights[i].clone();
    linear_backward_input_add(weights[i], adapter.b_NP.to(dtype) * adapter.scale, adapter.a_PM.to(dtype));
  }
}

}  // namespace

CachedModel::CachedModel(ParallelModel& model, const StepSettings& settings, ExpertSelection& selection,
                         WeightsBetweenPasses weights, int64_t most_positions)
    : model_(model),
      clock_(model.declarations().size()),
      experts_(model.axes().of(Axis::expert), model.config().experts(), plain_dispatch(settings.dispatch), clock_),
      embedding_(model.declarations().front()),
      head_(model.config(), model.declarations().back(), embedding_, settings.loss_chunk_tokens),
      rotary_(rotary_table(most_positions, rotary_options(model.config().rotary), model.options().device)) {
  const ModelConfig& config = model.config();
  const MixtureOptions mixtures{.selection = selection, .experts = experts_, .router = settings.router};
  Mixture::Place place;
  for (; place.layer < config.layer_count(); ++place.layer) {
    layers_.emplace_back(config, place, model.declarations()[place.layer + 1], ActivationCheckpointing::full, mixtures);
    if (config.layers[place.layer].mixture() != nullptr) ++place.mixture;
  }
  if (weights == WeightsBetweenPasses::gathered)
    gather_once();
  else
    schedule_.emplace(model.units(), ScheduleOptions{settings.prefetch_units, {}}, clock_);
}

// Unit by unit, so that there are never more weights than before but for those of one unit.
void CachedModel::gather_once() {
  MemoryScope scope(MemoryCategory::unsharded_parameters);
  for (Unit* unit : model_.units()) {
    unit->begin_unshard();
    unit->finish_unshard();
    UnitWeights& weights = gathered_.emplace_back(unit->weights());
    for (at::Tensor& weight : weights) weight = weight.to(model_.options().compute_dtype);
    fold_into_matrix(model_.declarations()[gathered_.size() - 1], weights);
    unit->reshard();  // which lets the tensors go; they live on here
    for (FlatParameter& group : unit->groups()) group.parameter_shard.reset();
  }
}

void CachedModel::begin_pass() {
  if (!schedule_) return;
  std::vector<size_t> visits;
  for (size_t unit = 0; unit <= head_unit(); ++unit) visits.push_back(unit);
  if (model_.config().tie_word_embeddings) visits.push_back(embedding_unit);
  schedule_->start(std::move(visits));
}

UnitWeights CachedModel::begin(size_t unit) {
  if (!schedule_) return gathered_[unit];
  UnitWeights weights = schedule_->begin(unit).weights();
  fold_into_matrix(model_.declarations()[unit], weights);
  return weights;
}

void CachedModel::end(size_t unit) {
  if (schedule_) schedule_->end(unit);
}

// A row for each token; of a rank without tokens one that nobody reads.
RotaryTable CachedModel::rotary_of(const NewestTokens& newest) const {
  std::vector<int64_t> positions;
  for (size_t b = 0; b < newest.cache_of_B.size(); ++b) {
    const int64_t first = newest.cache_of_B[b]->front().length();
    for (int64_t i = 0; i < newest.count_of_B[b]; ++i) positions.push_back(first + i);
  }
  if (positions.empty()) positions.push_back(0);
  const at::Tensor position_T = on_host(positions).to(rotary_.cos_SD.device());
  return {rotary_.cos_SD.index_select(0, position_T), rotary_.sin_SD.index_select(0, position_T), rotary_.interleaved};
}

at::Tensor CachedModel::last_rows(const at::Tensor& hidden_TH, const NewestTokens& newest) const {
  std::vector<int64_t> rows;
  int64_t row = 0;
  for (const int64_t count : newest.count_of_B) rows.push_back((row += count) - 1);
  return hidden_TH.index_select(0, on_host(rows).to(hidden_TH.device()));
}

at::Tensor CachedModel::extend(Pass pass) {
  const auto tokens = static_cast<int64_t>(pass.tokens.size());
  MicroBatch rows;
  rows.token_T = on_host(pass.tokens).to(model_.options().device);
  rows.batch = 1;
  rows.sequence = tokens;
  const RotaryTable rotary = rotary_of(pass.newest);
  begin_pass();
  at::Tensor hidden_TH = embedding_.forward(begin(embedding_unit), rows, model_.options().compute_dtype);
  end(embedding_unit);
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    pass.newest.layer = layer;
    hidden_TH = layers_[layer].extend(begin(layer + 1), std::move(hidden_TH), rows, pass.newest, rotary);
    end(layer + 1);
  }
  const UnitWeights own = begin(head_unit());
  const UnitWeights of_embedding = model_.config().tie_word_embeddings ? begin(embedding_unit) : UnitWeights();
  const at::Tensor logits_BV = head_.logits(last_rows(hidden_TH, pass.newest), head_.weights(own, of_embedding));
  if (schedule_) schedule_->finish();
  return to_host(logits_BV);
}

}  // namespace conclave
