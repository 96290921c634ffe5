#include "benchmarks/product_benchmark.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "benchmarks/stopwatch.h"
#include "kernels/product.h"
#include "optim/optimizer.h"

namespace conclave {
namespace {

constexpr int64_t copied_bytes = int64_t{256} << 20;

// Keys that a query sees in the mean of a sequence.
int64_t mean_keys(int64_t sequence, int64_t window) {
  int64_t sum = 0;
  for (int64_t query = 0; query < sequence; ++query) sum += std::min(query + 1, window);
  return (sum + sequence - 1) / sequence;
}

// Of the mixtures, and of the first dense MLP for each layer that has one.
std::vector<TimedProduct> mlp_products_of(const ParallelJob& job, int64_t tokens) {
  const ModelConfig& model = job.model_config();
  const int64_t hidden = model.hidden_size;
  std::vector<TimedProduct> products;
  if (const MixtureConfig* mixture = model.mixture()) {
    const int64_t local = mixture->experts / job.layout().degree(Axis::expert);
    const int64_t rows = std::max<int64_t>(1, tokens * mixture->top_k / local);
    const int64_t layers = model.mixtures() * job.micro_steps();
    products = {{"router", tokens, hidden, mixture->experts, layers},
                {"experts, gate and up", rows, hidden, 2 * mixture->intermediate, layers * local},
                {"experts, down", rows, mixture->intermediate, hidden, layers * local}};
  }
  for (const LayerConfig& layer : model.layers) {
    if (layer.mixture() != nullptr) continue;
    const int64_t intermediate = std::get<DenseMlpConfig>(layer.mlp).intermediate;
    const int64_t layers = (model.layer_count() - model.mixtures()) * job.micro_steps();
    products.push_back({"dense MLP, gate and up", tokens, hidden, 2 * intermediate, layers});
    products.push_back({"dense MLP, down", tokens, intermediate, hidden, layers});
    break;
  }
  return products;
}

std::vector<TimedProduct> products_of(const ParallelJob& job) {
  const ModelConfig& model = job.model_config();
  const Job& settings = job.job();
  const int64_t tokens = settings.data.micro_batch_size * settings.data.sequence_length;
  const AttentionConfig& attention = model.layers.front().attention;
  const int64_t layers = model.layer_count() * job.micro_steps();
  const int64_t hidden = model.hidden_size;
  const int64_t chunk = std::min(tokens, settings.memory.loss_chunk_tokens);
  const int64_t chunks = (tokens + chunk - 1) / chunk * job.micro_steps();
  // The query heads of one key/value head of one sequence are one matrix; its keys and values are the weights.
  const int64_t sequence = settings.data.sequence_length;
  const int64_t keys = mean_keys(sequence, attention.sliding_window.value_or(sequence));
  const int64_t grouped = sequence * attention.heads / attention.key_value_heads;
  const int64_t groups = settings.data.micro_batch_size * attention.key_value_heads;
  std::vector<TimedProduct> products = {
      {"query, key, value", tokens, hidden, attention.query_width() + attention.key_width() + attention.value_width(),
       layers},
      {"attention scores", grouped, attention.head_dim, keys, layers * groups},
      {"attention values", grouped, keys, attention.value_head_dim, layers * groups},
      {"attention output", tokens, attention.output_width(), hidden, layers}};
  for (TimedProduct& product : mlp_products_of(job, tokens)) products.push_back(std::move(product));
  products.push_back({"head", chunk, hidden, model.vocab_size, chunks});
  return products;
}

void time_product(TimedProduct& timed, Stopwatch& stopwatch, const at::TensorOptions& options, int64_t repeats) {
  // As many weights and gradients as a layer has, so that none is found in a cache where a step would not find it.
  constexpr int64_t most_weights = 8;
  const int64_t weights = std::min(timed.times, most_weights);
  const at::Tensor x = at::rand({timed.rows, timed.inner}, options);
  const at::Tensor y = at::rand({timed.rows, timed.columns}, options);
  const at::Tensor w = at::rand({weights, timed.columns, timed.inner}, options);
  at::Tensor out_y = at::empty_like(y), out_x = at::empty_like(x), out_w = at::zeros_like(w);
  const auto times = static_cast<double>(timed.times);
  timed.forward = times * stopwatch.median(repeats, [&](int64_t i) { product(out_y, x, w[i % weights].t(), false); });
  timed.input_gradient =
      times * stopwatch.median(repeats, [&](int64_t i) { product(out_x, y, w[i % weights], false); });
  timed.weight_gradient = times * stopwatch.median(repeats, [&](int64_t i) {
    product(out_w[i % weights], y.t(), x, true);  // gradients are summed
  });
}

}  // namespace

double ProductTimes::seconds() const {
  double sum = 0;
  for (const TimedProduct& product : products) sum += product.seconds();
  return sum;
}

ProductTimes time_products(ParallelJob& job, int64_t repeats) {
  const at::NoGradGuard no_grad;
  Stopwatch stopwatch(job);
  ProductTimes result;
  result.products = products_of(job);
  const auto options = at::device(job.device()).dtype(job.compute());
  for (TimedProduct& product : result.products) time_product(product, stopwatch, options, repeats);

  const at::Tensor from = at::zeros({copied_bytes}, at::device(job.device()).dtype(at::kByte));
  at::Tensor to = at::zeros_like(from);
  result.copy_rate = 2.0 * copied_bytes / stopwatch.median(repeats, [&](int64_t) { to.copy_(from); });
  const int64_t bytes_per_element = make_optimizer_rule(job.settings().optimizer)->bytes_per_element();
  int64_t elements = 0;
  for (const Unit* unit : job.model().units())
    for (const FlatParameter& group : unit->groups()) elements += group.layout().shard_numel();
  result.optimizer_bytes = job.max_over_world({static_cast<double>(bytes_per_element * elements)})[0];
  return result;
}

}  // namespace conclave
