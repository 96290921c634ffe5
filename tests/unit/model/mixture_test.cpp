// The mixtures of all families on one rank: forward and backward, whatever is kept between them.
//
// Oracle: autograd in double over each token and choice in a plain loop, on the choices that the mixture made (who is
// chosen is the routers' tests' affair). Tolerance: fp32 sums of up to H + 3 I terms and of all tokens, in another
// order.
#include "model/mixture.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "comm/local_communicator.h"

namespace conclave {
namespace {

constexpr uint64_t seed = 11;
constexpr int64_t hidden = 12, experts = 8, tokens = 30;

struct Form {
  const char* name;
  MixtureConfig mixture;
  RouterOptions router;
};

std::vector<Form> forms() {
  std::vector<Form> all;
  MixtureConfig plain;
  plain.experts = experts;
  plain.top_k = 2;
  plain.intermediate = 7;
  all.push_back({"softmax, renormalized", plain, {.top_k = 2}});

  MixtureConfig gated = plain;
  gated.renormalize = false;
  gated.shared = SharedExpertConfig{.intermediate = 9, .gated = true};
  all.push_back({"softmax, a gated shared expert", gated, {.top_k = 2, .renormalize = false}});

  MixtureConfig grouped = plain;
  grouped.scores = MixtureConfig::Scores::sigmoid;
  grouped.scaling_factor = 2.5;
  grouped.groups = 4;
  grouped.chosen_groups = 2;
  grouped.selection_bias = true;
  grouped.shared = SharedExpertConfig{.intermediate = 14};
  all.push_back({"sigmoid, groups, selection bias, a shared expert",
                 grouped,
                 {.top_k = 2, .scores = RouterScores::sigmoid, .scale = 2.5, .groups = 4, .top_groups = 2}});

  MixtureConfig clamped = plain;
  clamped.top_k = 3;
  clamped.scores = MixtureConfig::Scores::softmax_of_chosen;
  clamped.router_bias = clamped.expert_biases = clamped.input_major = true;
  clamped.activation = MixtureConfig::Activation::clamped_swiglu;
  all.push_back({"softmax of the chosen, biases, clamped, input-major", clamped, {.top_k = 3}});
  return all;
}

// Parameters by their names without the layer's, and what flows in.
struct Case {
  UnitDeclaration unit{"layers.3", {}};
  UnitWeights weights;
  at::Tensor normed_TH, residual_TH, grad_TH, probability_E, bias_E;

  explicit Case(const Form& form) {
    at::manual_seed(seed);
    ModelConfig config;
    config.hidden_size = hidden;
    Mixture::declare(config, form.mixture, unit.name, unit);
    for (const ParameterDeclaration& parameter : unit.parameters) weights.push_back(at::randn(parameter.shape) * 0.4);
    normed_TH = at::randn({tokens, hidden}) * 2;
    residual_TH = at::randn({tokens, hidden});
    grad_TH = at::randn({tokens, hidden});
    probability_E = at::randn({experts}) * 0.1;
    bias_E = at::randn({experts}) * 0.3;
  }
  size_t place_of(const std::string& name) const {
    size_t place = 0;
    while (unit.parameters.at(place).name != unit.name + "." + name) ++place;
    return place;
  }
};

at::Tensor activated(const at::Tensor& gate_up, bool clamped) {
  if (!clamped) {
    const auto halves = gate_up.chunk(2, 0);
    return at::silu(halves[0]) * halves[1];
  }
  const at::Tensor gate = gate_up.slice(0, 0, gate_up.size(0), 2).clamp_max(7.0);
  const at::Tensor up = gate_up.slice(0, 1, gate_up.size(0), 2).clamp(-7.0, 7.0);
  return (up + 1) * gate * at::sigmoid(1.702 * gate);
}

struct Answer {
  at::Tensor out_TH, grad_normed_TH;
  UnitGradients gradients;
};

// W x of a matrix by rows of outputs, or of inputs.
at::Tensor times(const at::Tensor& matrix, const at::Tensor& x, bool input_major) {
  return input_major ? matrix.t().mv(x) : matrix.mv(x);
}

Answer plainly(const Form& form, const Case& of, const at::Tensor& choice_TK) {
  const MixtureConfig& m = form.mixture;
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& weight : of.weights) leaves.push_back(weight.to(at::kDouble).requires_grad_());
  const at::Tensor x_TH = of.normed_TH.to(at::kDouble).requires_grad_();
  const auto parameter = [&](const char* name) { return leaves[of.place_of(name)]; };
  at::Tensor logits_TE = x_TH.matmul(parameter("router").t());
  if (m.router_bias) logits_TE = logits_TE + parameter("router_bias");
  const bool sigmoid = m.scores == MixtureConfig::Scores::sigmoid;
  const at::Tensor score_TE = sigmoid ? at::sigmoid(logits_TE) : at::softmax(logits_TE, 1);
  const bool of_chosen = m.scores == MixtureConfig::Scores::softmax_of_chosen;
  std::vector<at::Tensor> outs;
  for (int64_t t = 0; t < tokens; ++t) {
    const at::Tensor x = x_TH[t], chosen_K = choice_TK[t].to(at::kLong);
    at::Tensor weight_K =
        of_chosen ? at::softmax(logits_TE[t].index_select(0, chosen_K), 0) : score_TE[t].index_select(0, chosen_K);
    if (m.renormalize && !of_chosen) weight_K = weight_K / weight_K.sum();
    at::Tensor out = of.residual_TH[t].to(at::kDouble);
    for (int64_t k = 0; k < m.top_k; ++k) {
      const int64_t e = chosen_K[k].item<int64_t>();
      at::Tensor gate_up = times(parameter("experts.gate_up")[e], x, m.input_major);
      if (m.expert_biases) gate_up = gate_up + parameter("experts.gate_up_bias")[e];
      const bool clamped = m.activation == MixtureConfig::Activation::clamped_swiglu;
      at::Tensor y = times(parameter("experts.down")[e], activated(gate_up, clamped), m.input_major);
      if (m.expert_biases) y = y + parameter("experts.down_bias")[e];
      out = out + y * weight_K[k] * m.scaling_factor;
    }
    if (m.shared) {
      at::Tensor y = parameter("shared.down").mv(activated(parameter("shared.gate_up").mv(x), false));
      if (m.shared->gated) y = y * at::sigmoid(parameter("shared.gate").mv(x));
      out = out + y;
    }
    outs.push_back(out);
  }
  const at::Tensor out_TH = at::stack(outs), probability_TE = score_TE / score_TE.sum(1, true);
  const at::Tensor loss = (out_TH * of.grad_TH).sum() + (probability_TE * of.probability_E).sum();
  std::vector<at::Tensor> inputs{x_TH};
  inputs.insert(inputs.end(), leaves.begin(), leaves.end());
  const auto grads = torch::autograd::grad({loss}, inputs, {}, std::nullopt, false, /*allow_unused=*/true);
  Answer answer{out_TH.detach(), grads[0], {}};
  for (size_t i = 0; i < leaves.size(); ++i)
    answer.gradients.push_back({grads[i + 1].defined() ? grads[i + 1] : at::zeros_like(leaves[i]), false});
  return answer;
}

void expect_near(const std::string& name, const at::Tensor& actual, const at::Tensor& expected) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << name;
  const double scale = expected.abs().max().item<double>();
  EXPECT_LE((actual.to(at::kDouble) - expected).abs().max().item<double>(), 2e-5 * scale) << name;
}

enum class Kept { all, choices };

void expect_answer(const Form& form, Kept kept) {
  const Case c(form);
  LocalCommunicator alone("expert");
  StepClock clock(0);
  RoutedExperts routed(alone, experts, {}, clock);
  TopKSelection selection(form.router);
  if (form.mixture.selection_bias) {
    at::Tensor bias_LE = at::zeros({5, experts});
    bias_LE[1].copy_(c.bias_E);
    selection.use_bias_of_model(bias_LE);
  }
  const Mixture mixture(form.mixture, {.layer = 3, .mixture = 1}, c.unit, {.selection = selection, .experts = routed});
  MicroBatch batch;
  batch.batch = 1;
  batch.sequence = tokens;
  batch.sample_of_B = {0};
  MixtureState state;
  const at::Tensor out_TH = mixture.forward(Mode::training, c.weights, c.normed_TH.clone(), c.residual_TH, batch,
                                            kept == Kept::all ? PreActivation::kept : PreActivation::repeated, state);
  const at::Tensor choice_TK = state.routing.expert_of_choice_TK.clone();
  if (kept == Kept::choices) state = state.choices_alone();
  const Answer expected = plainly(form, c, choice_TK);
  expect_near("output", out_TH, expected.out_TH);

  UnitGradients gradients;
  for (const at::Tensor& weight : c.weights) gradients.push_back({at::full_like(weight, 1e30), false});
  const auto input = [&] { return c.normed_TH.clone(); };
  const at::Tensor grad_TH =
      mixture.backward(c.weights, gradients, c.grad_TH, input, batch, {c.probability_E, 0}, std::move(state));
  expect_near("gradient of the input", grad_TH, expected.grad_normed_TH);
  for (size_t i = 0; i < gradients.size(); ++i)
    expect_near("gradient of " + c.unit.parameters[i].name, gradients[i].tensor, expected.gradients[i].tensor);
}

TEST(Mixture, equals_a_plain_loop_over_tokens) {
  for (const Form& form : forms())
    for (const Kept kept : {Kept::all, Kept::choices}) {
      SCOPED_TRACE(fmt::format("seed {}: {}, {}", seed, form.name, kept == Kept::all ? "all kept" : "choices kept"));
      expect_answer(form, kept);
    }
}

// A selection bias is carried along: it has a gradient of zeros, and is none of the parameters that are counted.
TEST(Mixture, does_not_train_a_selection_bias) {
  const Form form = forms()[2];
  const Case c(form);
  const size_t place = c.place_of("selection_bias");
  EXPECT_FALSE(c.unit.parameters[place].trained);
  for (size_t i = 0; i < c.unit.parameters.size(); ++i) EXPECT_EQ(c.unit.parameters[i].trained, i != place);
}

}  // namespace
}  // namespace conclave
