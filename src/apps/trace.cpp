// conclave trace: logits, losses and gradients of given tokens.
#include <memory>

#include "apps/command.h"
#include "base/error.h"
#include "config/field_values.h"
#include "config/job_check.h"
#include "run/trace.h"

namespace conclave {

void add_trace(CLI::App& app, int& exit_code) {
  struct Options {
    TraceRequest request;
    std::vector<std::string> overrides;
    int ranks = 1;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "trace", "write what a model computes for given tokens, to hold it against another implementation");
  command->add_option("--model", options->request.model, "a Hugging Face checkpoint folder")->required();
  command
      ->add_option(
          "--tokens", options->request.tokens,
          "a safetensors file with input_ids and labels, int64 [B,S]; labels are shifted already, -100 is ignored; "
          "perhaps segment_ids, int64 [B,S]: tokens of one number are a document, and documents do not see each other")
      ->required();
  command
      ->add_option("--out", options->request.out,
                   "the safetensors file to write: logits [B,S,V], lm_loss, aux_loss, z_loss; fp32")
      ->required();
  command->add_flag(
      "--grads", options->request.gradients,
      "also grad.<name on disk> of lm_loss + router_aux_loss_coef x aux_loss (+ moe_z_loss_coeff x z_loss)");
  command->add_option("--set", options->overrides, "a key of the job: section.key=value; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add_ranks_option(*command, options->ranks);
  command->footer(
      "Computes in fp32 on the CPU, without jitter and with Transformers' balancing loss, unless --set "
      "precision.compute, run.device, moe.router_jitter_noise or moe.aux_loss_layers say otherwise. Any layout: the "
      "batch is divided over the ranks.\n\n"
      "conclave trace --model DIR --tokens tokens.safetensors --out trace.safetensors \\\n"
      "    --grads --ranks 2 --set parallel.expert_parallel_degree=2");
  command->callback([options, &exit_code] {
    const auto read = [options] {
      std::vector<std::string> overrides = {
          "precision.compute=fp32",    "run.device=cpu",
          "moe.router_jitter_noise=0", "moe.aux_loss_layers=together",
          "data.sequence_length=1",    "model.config=" + print_value(options->request.model)};
      overrides.insert(overrides.end(), options->overrides.begin(), options->overrides.end());
      Job job = job_from_overrides(overrides);
      // Logits are those of evaluation; with these rules the gradients would be of other experts' outputs.
      const LoadBalancing rule = job.moe.moe_load_balancing;
      if (rule != LoadBalancing::aux_loss && rule != LoadBalancing::none)
        user_error(
            "moe.moe_load_balancing chooses other experts in training than trace does, which takes the top k of the "
            "scores. Use aux_loss or none.   ({})",
            job.origins.of("moe.moe_load_balancing"));
      return job;
    };
    exit_code = run_on_ranks(options->ranks, read, [options](ParallelJob& job) { trace(job, options->request); });
  });
}

}  // namespace conclave
