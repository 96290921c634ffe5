#include "run/run_record.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <optional>
#include <string>
#include <utility>

#include "model/parameters.h"
#include "run/run_folder.h"
#include "step/compute_precision.h"

namespace conclave {
namespace {

std::vector<double> list_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

// What is known of each mixture, as entries of the model's layers.
class ByLayer {
 public:
  explicit ByLayer(const ModelConfig& model) : layers_(model.mixture_layers()), count_(model.layer_count()) {}

  LayerNumbers operator()(const at::Tensor& values_L) const { return placed(list_of(values_L)); }
  LayerRows rows(const at::Tensor& values_LE) const {
    std::vector<std::vector<double>> rows;
    for (int64_t mixture = 0; mixture < values_LE.size(0); ++mixture) rows.push_back(list_of(values_LE[mixture]));
    return placed(std::move(rows));
  }

 private:
  template <class Value>
  std::vector<std::optional<Value>> placed(std::vector<Value> of_mixtures) const {
    std::vector<std::optional<Value>> of_layers(static_cast<size_t>(count_));
    for (size_t mixture = 0; mixture < of_mixtures.size(); ++mixture)
      of_layers.at(static_cast<size_t>(layers_.at(mixture))) = std::move(of_mixtures[mixture]);
    return of_layers;
  }

  std::vector<int64_t> layers_;
  int64_t count_;
};

}  // namespace

MetricsRecord record_of_step(const StepReport& report, const RankExtremes& highest, const StepCourse& course) {
  return {{"loss", report.loss},
          {"lm_loss", report.targets > 0 ? MetricValue(report.lm_loss) : MetricValue()},
          {"aux_loss", report.aux_loss},
          {"z_loss", report.z_loss},
          {"grad_norm", report.gradient_norm},
          {"lr", course.lr},
          {"tokens", course.tokens},
          {"targets", report.targets},
          {"tokens_per_second", course.tokens_per_second},
          {"step_seconds", course.seconds},
          {"data_seconds", highest.data_seconds},
          {"gather_wait_seconds", highest.gather_seconds},
          {"reduce_wait_seconds", highest.reduce_seconds},
          {"dispatch_wait_seconds", highest.dispatch_seconds},
          {"offload_wait_seconds", highest.offload_seconds},
          {"peak_memory_bytes", static_cast<int64_t>(highest.peak_memory_bytes)},
          {"peak_resident_bytes", static_cast<int64_t>(highest.peak_resident_bytes)},
          {"drop_rate", report.drop_rate}};
}

void append_load(MetricsRecord& record, const ModelConfig& model, const LoadStatistics& load,
                 const DeadExperts& dead_experts, LoadDetail detail) {
  const ByLayer by_layer(model);
  record.emplace_back("expert_imbalance", load.imbalance());
  record.emplace_back("expert_imbalance_by_layer", by_layer(load.imbalance_L()));
  const at::Tensor& count_LE = load.count_LE();
  record.emplace_back("expert_share", list_of(count_LE.sum(0) / count_LE.sum()));  // of all layers' choices, by expert
  record.emplace_back("load_entropy", load.entropy_L().mean().item<double>());
  record.emplace_back("router_confidence", load.confidence_L().mean().item<double>());
  record.emplace_back("dead_experts", static_cast<int64_t>(dead_experts.dead_L().sum().item<double>()));
  if (detail == LoadDetail::brief) return;
  record.emplace_back("expert_share_by_layer", by_layer.rows(load.share_LE()));
  record.emplace_back("load_entropy_by_layer", by_layer(load.entropy_L()));
  record.emplace_back("router_confidence_by_layer", by_layer(load.confidence_L()));
  record.emplace_back("aux_loss_by_layer", by_layer(load.aux_loss_L()));
  record.emplace_back("z_loss_by_layer", by_layer(load.z_loss_L()));
  record.emplace_back("dead_experts_by_layer", by_layer(dead_experts.dead_L()));
}

void append_sources(MetricsRecord& record, const Blend& blend, int64_t samples, const StepReport& report) {
  if (blend.is_single()) return;
  const std::vector<int64_t> samples_of_source = blend.samples_before(samples);
  for (size_t s = 0; s < report.sources.size(); ++s) {
    const SourceLoss& source = report.sources[s];
    const std::string name = "source/" + blend.sources()[s].name;
    record.emplace_back(name + "/tokens", samples_of_source[s] * blend.sequence_length());
    record.emplace_back(name + "/targets", source.targets);
    record.emplace_back(name + "/loss", source.targets > 0 ? MetricValue(source.mean()) : MetricValue());
  }
}

std::vector<std::pair<std::string, double>> losses_of(const Blend& blend, const StepReport& report) {
  std::vector<std::pair<std::string, double>> losses;
  for (size_t s = 0; s < report.sources.size(); ++s)
    if (report.sources[s].targets > 0) losses.emplace_back(blend.sources()[s].name, report.sources[s].mean());
  return losses;
}

std::string what_is_computed(const ParallelJob& job, const std::vector<UnitDeclaration>& declared) {
  const int64_t parameters = count_parameters(declared), trained = count_trained_parameters(declared);
  return fmt::format(
      "{} parameters{}, {} used by each token; {} tokens a step in {} micro-steps; computing in {}{} on {}", parameters,
      trained < parameters ? fmt::format(", of which {} are trained", trained) : "",
      count_parameters_per_token(declared, job.model_config()), job.tokens_per_step(), job.micro_steps(),
      precision_name(job.compute()),
      job.job().precision.experts == ExpertPrecision::fp8 ? ", the experts' products in fp8," : "", job.device().str());
}

void append_start(MetricsRecord& record, const ParallelJob& job, int64_t started_after) {
  record.emplace_back("started_after", started_after);
  record.emplace_back("ranks", static_cast<int64_t>(job.layout().world_size()));
  record.emplace_back("device", job.device().str());
  record.emplace_back("compute", std::string(precision_name(job.compute())));
  for (const auto& [name, version] : versions()) record.emplace_back(name + "_version", version);
}

}  // namespace conclave
