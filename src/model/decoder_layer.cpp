#include "model/decoder_layer.h"

#include "memory/memory_category.h"

namespace conclave {
namespace {

struct Names {
  explicit Names(const UnitDeclaration& unit)
      : input_norm(unit.name + ".input_norm"),
        attention(unit.name + ".attention"),
        post_attention_norm(unit.name + ".post_attention_norm"),
        dense_mlp(unit.name + ".mlp") {}

  std::string input_norm, attention, post_attention_norm, dense_mlp;
};

std::variant<Attention, LatentAttention> attention_of(const ModelConfig& config, int64_t layer,
                                                      const UnitDeclaration& unit) {
  const AttentionConfig& attention = config.layers.at(layer).attention;
  const std::string name = Names(unit).attention;
  if (attention.latent) return LatentAttention(attention, name, unit);
  return Attention(config, attention, name, unit);
}

}  // namespace

void DecoderLayer::declare(const ModelConfig& config, int64_t layer, UnitDeclaration& unit) {
  const LayerConfig& of_layer = config.layers.at(layer);
  if (config.adapter) unit.adapter = {config.adapter->scale, config.adapter->dropout, config.adapter->seed};
  const Names names(unit);
  Norm::declare(config, names.input_norm, unit);
  const auto declare_attention = of_layer.attention.latent ? LatentAttention::declare : Attention::declare;
  declare_attention(config, of_layer.attention, names.attention, unit);
  Norm::declare(config, names.post_attention_norm, unit);
  if (const MixtureConfig* mixture = of_layer.mixture())
    Mixture::declare(config, *mixture, unit.name, unit);
  else
    DenseMlp::declare(config, std::get<DenseMlpConfig>(of_layer.mlp).intermediate, names.dense_mlp, unit);
}

DecoderLayer::DecoderLayer(const ModelConfig& config, const Mixture::Place& place, const UnitDeclaration& unit,
                           ActivationCheckpointing checkpointing, const MixtureOptions& options)
    : checkpointing_(checkpointing),
      input_norm_(config, Names(unit).input_norm, unit),
      attention_(attention_of(config, place.layer, unit)),
      post_attention_norm_(config, Names(unit).post_attention_norm, unit) {
  if (const MixtureConfig* mixture = config.layers[place.layer].mixture())
    mixture_.emplace(*mixture, place, unit, options);
  else
    dense_mlp_.emplace(Names(unit).dense_mlp, unit);
}

at::Tensor DecoderLayer::normed_attention_input(const UnitWeights& weights, LayerState& state) const {
  const at::Tensor& input_TH = state.input_TH;
  at::Tensor normed_TH = at::empty_like(input_TH);
  {
    MemoryScope scope(MemoryCategory::activations);
    state.input_rstd_T = at::empty({input_TH.size(0)}, input_TH.options().dtype(at::kFloat));
  }
  input_norm_.forward(weights, normed_TH, state.input_rstd_T, input_TH);
  return normed_TH;
}

void DecoderLayer::compute_attention(const UnitWeights& weights, const MicroBatch& batch, const RotaryTable& rotary,
                                     LayerState& state) const {
  const at::Tensor& input_TH = state.input_TH;
  const at::Tensor normed_TH = normed_attention_input(weights, state);
  state.hidden_TH = std::visit(
      [&](const auto& attention) {
        return attention.forward(weights, normed_TH, input_TH, batch, rotary, state.attention);
      },
      attention_);
}

at::Tensor DecoderLayer::normed_mlp_input(const UnitWeights& weights, LayerState& state) const {
  at::Tensor normed_TH = at::empty_like(state.hidden_TH);
  if (state.hidden_rstd_T.defined()) {
    post_attention_norm_.repeat(weights, normed_TH, state.hidden_rstd_T, state.hidden_TH);
  } else {
    state.hidden_rstd_T = at::empty({normed_TH.size(0)}, normed_TH.options().dtype(at::kFloat));
    post_attention_norm_.forward(weights, normed_TH, state.hidden_rstd_T, state.hidden_TH);
  }
  return normed_TH;
}

at::Tensor DecoderLayer::run(Mode mode, const UnitWeights& weights, const MicroBatch& batch, const RotaryTable& rotary,
                             LayerState& state, RoutingStatistics& statistics) const {
  compute_attention(weights, batch, rotary, state);
  const bool keep = mode == Mode::training && checkpointing_ == ActivationCheckpointing::none;
  if (!keep) state.attention = {};  // nobody reads it any more
  const PreActivation pre_activation = keep ? PreActivation::kept : PreActivation::repeated;
  at::Tensor normed_TH = normed_mlp_input(weights, state);
  if (dense_mlp_)
    return dense_mlp_->forward(weights, normed_TH, state.hidden_TH, batch, pre_activation, state.dense_mlp);
  at::Tensor output_TH =
      mixture_->forward(mode, weights, std::move(normed_TH), state.hidden_TH, batch, pre_activation, state.mixture);
  statistics = mixture_->statistics(state.mixture);
  return output_TH;
}

at::Tensor DecoderLayer::forward(const UnitWeights& weights, at::Tensor input_TH, const MicroBatch& batch,
                                 const RotaryTable& rotary, LayerState& state, RoutingStatistics& statistics) const {
  state.input_TH = std::move(input_TH);
  at::Tensor output_TH = run(Mode::training, weights, batch, rotary, state, statistics);
  if (checkpointing_ == ActivationCheckpointing::none) return output_TH;
  LayerState kept;
  kept.input_TH = state.input_TH;
  if (checkpointing_ == ActivationCheckpointing::selective) {
    kept.hidden_rstd_T = state.hidden_rstd_T;
    kept.mixture = std::move(state.mixture);
  } else {
    kept.mixture = state.mixture.choices_alone();
  }
  state = std::move(kept);
  return output_TH;
}

at::Tensor DecoderLayer::evaluate(const UnitWeights& weights, at::Tensor input_TH, const MicroBatch& batch,
                                  const RotaryTable& rotary, RoutingStatistics& statistics) const {
  LayerState state;
  state.input_TH = std::move(input_TH);
  return run(Mode::evaluation, weights, batch, rotary, state, statistics);
}

at::Tensor DecoderLayer::extend(const UnitWeights& weights, at::Tensor input_TH, const MicroBatch& rows,
                                const NewestTokens& newest, const RotaryTable& rotary) const {
  LayerState state;
  state.input_TH = std::move(input_TH);
  const at::Tensor normed_TH = normed_attention_input(weights, state);
  state.hidden_TH = std::visit(
      [&](const auto& attention) { return attention.extend(weights, normed_TH, state.input_TH, rows, newest, rotary); },
      attention_);
  constexpr PreActivation pre_activation = PreActivation::repeated;
  at::Tensor normed_hidden_TH = normed_mlp_input(weights, state);
  if (dense_mlp_)
    return dense_mlp_->forward(weights, normed_hidden_TH, state.hidden_TH, rows, pre_activation, state.dense_mlp);
  return mixture_->forward(Mode::evaluation, weights, std::move(normed_hidden_TH), state.hidden_TH, rows,
                           pre_activation, state.mixture);
}

at::Tensor DecoderLayer::backward(const UnitWeights& weights, UnitGradients gradients, at::Tensor grad_TH,
                                  const MicroBatch& batch, const RotaryTable& rotary,
                                  const RouterLossGradient& router_loss, LayerState state) const {
  if (!state.attention.is_kept()) compute_attention(weights, batch, rotary, state);

  const auto mlp_input = [&] { return normed_mlp_input(weights, state); };
  {
    const at::Tensor grad_normed_TH =
        dense_mlp_
            ? dense_mlp_->backward(weights, gradients, grad_TH, mlp_input(), batch, std::move(state.dense_mlp))
            : mixture_->backward(weights, gradients, grad_TH, mlp_input, batch, router_loss, std::move(state.mixture));
    post_attention_norm_.backward(weights, gradients, grad_TH, grad_normed_TH, state.hidden_rstd_T, state.hidden_TH);
  }
  state.hidden_TH.reset();

  const at::Tensor normed_TH = at::empty_like(state.input_TH);
  input_norm_.repeat(weights, normed_TH, state.input_rstd_T, state.input_TH);
  std::visit(
      [&](const auto& attention) {
        attention.backward(weights, gradients, grad_TH, normed_TH, batch, rotary, std::move(state.attention));
      },
      attention_);
  const at::Tensor& grad_normed_TH = normed_TH;  // its memory, now that the value is used up
  input_norm_.backward(weights, gradients, grad_TH, grad_normed_TH, state.input_rstd_T, state.input_TH);
  return grad_TH;
}

}  // namespace conclave
