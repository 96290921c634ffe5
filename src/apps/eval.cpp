// conclave eval: the loss on the validation set, beside what counting tokens alone reaches.
#include <fmt/core.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/command.h"
#include "apps/parameter_source.h"
#include "base/error.h"
#include "base/log.h"
#include "config/job_check.h"
#include "data/bigram_model.h"
#include "run/evaluation.h"

namespace conclave {
namespace {

struct Evaluated {
  std::vector<NamedSet> sets;
  std::vector<EvaluationResult> results;
  std::optional<NgramCrossEntropy> ngram;

  bool has_several() const { return sets.size() > 1; }
};

nlohmann::ordered_json json_of(const EvaluationResult& result) {
  return {{"validation_loss", result.lm_loss},
          {"aux_loss", result.aux_loss},
          {"targets", result.targets},
          {"samples", result.samples}};
}

void print_json(const Evaluated& evaluated) {
  nlohmann::ordered_json object;
  if (evaluated.has_several())
    for (size_t i = 0; i < evaluated.sets.size(); ++i) object[evaluated.sets[i].name] = json_of(evaluated.results[i]);
  else
    object = json_of(evaluated.results[0]);
  if (evaluated.ngram) {
    object["unigram_cross_entropy"] = evaluated.ngram->unigram;
    object["bigram_cross_entropy"] = evaluated.ngram->bigram;
  }
  std::cout << object.dump() << std::endl;
}

void print_lines(const Evaluated& evaluated) {
  for (size_t i = 0; i < evaluated.sets.size(); ++i)
    fmt::print("{:<22} {:.4f} nats per token over {}\n",
               evaluated.has_several() ? evaluated.sets[i].name : "validation loss", evaluated.results[i].lm_loss,
               samples_in_words(evaluated.results[i], *evaluated.sets[i].stream));
  if (!evaluated.ngram) return;
  fmt::print("bigram cross-entropy   {:.4f}  (counting pairs of the training text)\n", evaluated.ngram->bigram);
  fmt::print("unigram cross-entropy  {:.4f}\n", evaluated.ngram->unigram);
}

// Counts pairs of one text to score another: of a blend, and where targets are left out, it would score other targets
// than the loss.
std::optional<NgramCrossEntropy> ngram_of(const ParallelJob& job, const std::vector<NamedSet>& sets) {
  const TrainingData& train = job.job().data.train;
  if (train.sets.size() != 1 || sets.size() != 1 || !sets[0].stream->trains_on_all_targets()) return std::nullopt;
  const int64_t vocab_size = job.model_config().vocab_size;
  const IndexedTokens counted(train.sets[0].prefix, vocab_size);
  if (counted.mask() != nullptr) return std::nullopt;
  return ngram_cross_entropy(counted, sets[0].stream->set(), vocab_size, sets[0].stream->sequence_length());
}

}  // namespace

void add_eval(CLI::App& app, int& exit_code) {
  struct Options {
    JobOptions job;
    ParameterSource source;
    int ranks = 1;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("eval", "the loss on the whole validation set (validation.samples does not count here)");
  add_job_options(*command, options->job);
  add_source_options(*command, options->source);
  add_ranks_option(*command, options->ranks);
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options, &exit_code] {
    const auto read = [options] {
      Job job = read_job(options->job.file, options->job.overrides);
      require(job, "data.validation");
      return job;
    };
    exit_code = run_on_ranks(options->ranks, read, [options](ParallelJob& job) {
      const CheckpointValues values = load_from(job, options->source);
      Job whole = job.job();
      whole.validation.samples = 0;
      Evaluated evaluated{open_validation(whole, job.model_config().vocab_size), {}, {}};
      ForwardBackward forward_backward(job.model(), job.settings());
      forward_backward.take_parameters();
      restore(forward_backward.selection(), values);
      for (const NamedSet& set : evaluated.sets)
        evaluated.results.push_back(evaluate(job, forward_backward, set.stream, 0));
      if (!job.is_first()) return;
      evaluated.ngram = ngram_of(job, evaluated.sets);
      options->json ? print_json(evaluated) : print_lines(evaluated);
    });
  });
}

}  // namespace conclave
