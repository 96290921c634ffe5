#include "run/upcycle.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>

#include "base/error.h"
#include "base/random.h"
#include "checkpoint/checkpoint_state.h"
#include "checkpoint/hugging_face_reader.h"
#include "families/family.h"
#include "families/source_config.h"
#include "run/dense_experts.h"
#include "run/resized_vocabulary.h"

namespace conclave {
namespace {

constexpr int64_t block_elements = int64_t{1} << 20;  // of weights in memory beside the parameters

struct UpcycleOptions {
  double noise = 0;            // relative to a dense matrix's standard deviation
  double reinit_fraction = 0;  // of an expert's intermediate units
  uint64_t seed = 0;
};

struct Moments {
  double mean = 0;
  double deviation = 0;
};

// How the elements of an expert parameter [E, 2I, H] or [E, H, I] lie in its experts' matrices [I, H] or [H, I], which
// follow one another: gate and up of expert 0, of expert 1, ...
struct ExpertMatrices {
  bool is_down;
  int64_t hidden, intermediate;

  int64_t numel() const { return hidden * intermediate; }
  int64_t of_an_expert() const { return is_down ? 1 : 2; }
  int64_t expert_of(int64_t element) const { return element / (numel() * of_an_expert()); }
  int64_t matrix_of(int64_t element) const { return element / numel() % of_an_expert(); }  // 0: gate or down, 1: up
  int64_t unit_of(int64_t element) const {
    const int64_t in_matrix = element % numel();
    return is_down ? in_matrix % intermediate : in_matrix / hidden;
  }
};

ExpertMatrices expert_matrices(const ModelConfig& config, const std::string& parameter) {
  return {parameter.ends_with(".down"), config.hidden_size, config.mixture()->intermediate};
}

// Mean and deviation of the matrices of each dense MLP. The blocks are divided over the ranks, and only
// one rank adds to each block's sums: no layout changes a bit of them.
std::map<std::string, std::vector<Moments>> dense_moments(const ModelConfig& dense,
                                                          const std::vector<DiskNames>& all_names,
                                                          const HuggingFaceReader& reader, Communicator& host_world) {
  std::vector<DiskNames> parameters;
  for (const DiskNames& names : all_names)
    if (names.parameter.find(".mlp.") != std::string::npos) parameters.push_back(names);
  const int64_t numel = dense.hidden_size * std::get<DenseMlpConfig>(dense.layers.front().mlp).intermediate;
  const int64_t blocks = (numel + block_elements - 1) / block_elements;  // of a matrix
  const auto matrices_of = [&](const DiskNames& names) { return names.shape[0] * names.shape[1] / numel; };
  int64_t matrices = 0;
  for (const DiskNames& names : parameters) matrices += matrices_of(names);
  const at::Tensor sums = at::zeros({matrices * blocks, 2}, at::kDouble);  // of values, of their squares
  const at::Tensor memory = at::empty({std::min(numel, block_elements)}, at::kFloat);

  int64_t row = 0;
  for (const DiskNames& names : parameters) {
    for (int64_t matrix = 0; matrix < matrices_of(names); ++matrix) {
      for (int64_t block = 0; block < blocks; ++block, ++row) {
        if (row % host_world.size() != host_world.rank()) continue;
        const int64_t begin = block * block_elements;
        const at::Tensor values = memory.narrow(0, 0, std::min(block_elements, numel - begin));
        reader.load({names.parameter, names.shape, matrix * numel + begin, values});
        auto* sum = sums[row].data_ptr<double>();
        for (const float value : std::span(values.const_data_ptr<float>(), values.numel())) {
          sum[0] += value;
          sum[1] += static_cast<double>(value) * value;
        }
      }
    }
  }
  host_world.all_reduce(sums).wait();

  std::map<std::string, std::vector<Moments>> moments;
  const auto* sum = sums.const_data_ptr<double>();
  for (const DiskNames& names : parameters) {
    for (int64_t matrix = 0; matrix < matrices_of(names); ++matrix) {
      double values = 0, squares = 0;
      for (int64_t block = 0; block < blocks; ++block, sum += 2) {
        values += sum[0];
        squares += sum[1];
      }
      const double mean = values / static_cast<double>(numel);
      const double variance = squares / static_cast<double>(numel) - mean * mean;
      moments[names.parameter].push_back({mean, std::sqrt(std::max(0.0, variance))});
    }
  }
  return moments;
}

// Which intermediate units of an expert are drawn anew, the same in all its matrices: those with the smallest random
// numbers.
std::vector<char> fresh_units(const ModelConfig& config, const std::string& layer, int64_t expert,
                              const UpcycleOptions& options) {
  const int64_t units = config.mixture()->intermediate;
  const uint64_t stream = random_stream(fmt::format("{}.experts.{} fresh units", layer, expert));
  std::vector<std::pair<uint64_t, int64_t>> order(units);
  for (int64_t unit = 0; unit < units; ++unit)
    order[unit] = {random_u64(options.seed, stream, static_cast<uint64_t>(unit)), unit};
  std::sort(order.begin(), order.end());
  std::vector<char> fresh(units, 0);
  const int64_t count = std::llround(options.reinit_fraction * static_cast<double>(units));
  for (int64_t i = 0; i < count; ++i) fresh[order[i].second] = 1;
  return fresh;
}

// Tells the copies in `slice` apart. `moments`: of the dense matrices; a piece's down projection is `pieces` times
// theirs.
void diversify(const TensorSlice& slice, const ModelConfig& config, std::vector<Moments> moments, int64_t pieces,
               const UpcycleOptions& options) {
  const ExpertMatrices matrices = expert_matrices(config, slice.name);
  if (matrices.is_down) {
    moments[0].mean *= static_cast<double>(pieces);
    moments[0].deviation *= static_cast<double>(pieces);
  }
  const std::string layer = slice.name.substr(0, slice.name.find(".experts."));
  const uint64_t stream = random_stream(slice.name + " upcycling");
  std::vector<float> standard(std::min(slice.data.numel(), block_elements));
  std::vector<char> fresh;
  int64_t fresh_of = -1;  // the expert
  for (int64_t done = 0; done < slice.data.numel(); done += block_elements) {
    const int64_t count = std::min(block_elements, slice.data.numel() - done);
    const std::span<float> draws(standard.data(), static_cast<size_t>(count));
    fill_normal(draws, options.seed, stream, static_cast<uint64_t>(slice.begin + done), 0.0f, 1.0f);
    const at::Tensor block = slice.data.narrow(0, done, count);
    const at::Tensor host = block.to(at::kCPU);  // the same memory on a CPU run
    auto* weight = host.data_ptr<float>();
    for (int64_t i = 0; i < count; ++i) {
      const int64_t element = slice.begin + done + i;
      if (matrices.expert_of(element) != fresh_of) {
        fresh_of = matrices.expert_of(element);
        fresh = fresh_units(config, layer, fresh_of, options);
      }
      const Moments& of = moments[matrices.matrix_of(element)];
      if (fresh[matrices.unit_of(element)] != 0)
        weight[i] = static_cast<float>(of.mean + of.deviation * draws[i]);
      else
        weight[i] += static_cast<float>(options.noise * of.deviation * draws[i]);
    }
    if (!block.is_cpu()) block.copy_(host);
  }
}

// Pieces of one copy have one row of the router, the first piece's: so a token that chooses a copy chooses all of it.
void share_router_rows(const TensorSlice& slice, const ModelConfig& config, int64_t pieces, uint64_t seed) {
  const int64_t hidden = config.hidden_size, end = slice.begin + slice.data.numel();
  const at::Tensor row_H = at::empty({hidden}, at::kFloat);
  for (int64_t expert = slice.begin / hidden; expert * hidden < end; ++expert) {
    const int64_t from = std::max(slice.begin, expert * hidden), to = std::min(end, (expert + 1) * hidden);
    const int64_t first = expert - expert % pieces;
    const at::Tensor part = row_H.narrow(0, from - expert * hidden, to - from);
    fill_normal({part.data_ptr<float>(), static_cast<size_t>(part.numel())}, seed, random_stream(slice.name),
                static_cast<uint64_t>(first * hidden + from - expert * hidden), 0.0f,
                static_cast<float>(config.initializer_range));
    slice.data.narrow(0, from - slice.begin, to - from).copy_(part);
  }
}

}  // namespace

void upcycle(ParallelModel& model, const ModelSource& source, uint64_t seed, Communicator& host_world) {
  const ModelConfig& config = model.config();
  check_source_config(source, config);
  const ModelConfig dense = read_model_config(source.upcycle_from.value());
  const std::vector<DiskNames> names = disk_names(dense);
  const HuggingFaceReader reader(source.upcycle_from.value(), names);
  const DenseExperts experts(config, dense, reader);
  const UpcycleOptions options{source.upcycle_noise, source.upcycle_reinit_fraction, seed};
  const bool copies_differ = options.noise > 0 || options.reinit_fraction > 0;
  const std::map<std::string, std::vector<Moments>> moments =
      copies_differ ? dense_moments(dense, names, reader, host_world) : std::map<std::string, std::vector<Moments>>();

  model.initialize(seed);  // of which the routers remain
  for (const TensorSlice& slice : model.slices(kind_parameter, ParallelModel::Replicas::all)) {
    if (slice.name.ends_with(".router")) {
      if (experts.pieces() > 1) share_router_rows(slice, config, experts.pieces(), seed);
    } else if (DenseExperts::is_of_experts(slice.name)) {
      experts.fill(slice);
      if (copies_differ)
        diversify(slice, config, moments.at(DenseExperts::dense_name(slice.name)), experts.pieces(), options);
    } else {
      load_slice(reader, slice, dense.vocab_size, seed);
    }
  }
}

}  // namespace conclave
