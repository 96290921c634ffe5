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

void print_result(const EvaluationResult& result, const SampleStream& stream,
                  const std::optional<NgramCrossEntropy>& ngram, bool json) {
  if (json) {
    nlohmann::ordered_json object = {{"validation_loss", result.lm_loss},
                                     {"aux_loss", result.aux_loss},
                                     {"targets", result.targets},
                                     {"samples", result.samples}};
    if (ngram) {
      object["unigram_cross_entropy"] = ngram->unigram;
      object["bigram_cross_entropy"] = ngram->bigram;
    }
    std::cout << object.dump() << std::endl;
    return;
  }
  fmt::print("validation loss        {:.4f} nats per token over {}\n", result.lm_loss,
             samples_in_words(result, stream));
  if (ngram) {
    fmt::print("bigram cross-entropy   {:.4f}  (counting pairs of the training text)\n", ngram->bigram);
    fmt::print("unigram cross-entropy  {:.4f}\n", ngram->unigram);
  }
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
      const auto stream = open_validation(job);
      ForwardBackward forward_backward(job.model(), job.settings());
      forward_backward.take_parameters();
      restore(forward_backward.selection(), values);
      const EvaluationResult result = evaluate(job, forward_backward, stream, 0);
      if (!job.is_first()) return;
      std::optional<NgramCrossEntropy> ngram;
      if (!job.job().data.train.empty()) {
        const IndexedTokens train(job.job().data.train, job.model_config().vocab_size);
        ngram = ngram_cross_entropy(train, stream->set(), job.model_config().vocab_size, stream->sequence_length());
      }
      print_result(result, *stream, ngram, options->json);
    });
  });
}

}  // namespace conclave
