// conclave ckpt to-dcp and from-dcp: between checkpoints and PyTorch's distributed checkpoints (DCP). What a checkpoint
// holds is known here, what a DCP folder holds is known to PyTorch: `python -m conclave.ckpt` reads and writes it with
// PyTorch's own classes, and every tensor goes through a pipe between the two.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "apps/ckpt.h"
#include "apps/dcp_names.h"
#include "apps/python_pipe.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "base/strict_json.h"
#include "checkpoint/checkpoint_blocks.h"
#include "checkpoint/checkpoint_stream.h"
#include "checkpoint/safetensors_reader.h"
#include "config/job_file.h"
#include "families/family.h"
#include "model/parameters.h"
#include "optim/adamw.h"
#include "optim/learning_rate.h"
#include "run/run_folder.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr const char* python_module = "conclave.ckpt";
// State and model of a checkpoint as one text: a manifest without tensors.
std::string state_text(const CheckpointState& state) {
  return manifest_text(Manifest{{}, state, default_hash_block_bytes, {}, {}});
}

bool is_dcp_file(std::string_view name) {
  return name == ".metadata" || name.ends_with(".distcp");
}

json describe(const std::vector<DcpTensor>& tensors, const Manifest& manifest) {
  json list = json::array();
  for (const DcpTensor& tensor : tensors) {
    const auto source = manifest.tensors.find(tensor.source);
    if (source == manifest.tensors.end()) user_error("the checkpoint has no tensor \"{}\".", tensor.source);
    list.push_back({{"path", tensor.path}, {"shape", tensor.shape}, {"dtype", name_of(source->second.dtype)}});
  }
  return list;
}

// The job that a checkpoint is of, as far as its optimizer goes; of an imported one, the defaults.
Job optimizer_job(const CheckpointState& state) {
  std::vector<std::string> given;
  for (const char* key :
       {"optimizer.lr", "optimizer.beta1", "optimizer.beta2", "optimizer.eps", "optimizer.weight_decay",
        "schedule.kind", "schedule.warmup_steps", "schedule.min_lr", "run.steps"})
    if (const auto found = state.job.find(key); found != state.job.end())
      given.push_back(fmt::format("{}={}", key, found->second));
  return job_from_overrides(given);
}

// AdamW's groups of parameters: those that decay, and the norms, which do not. The learning rate is the next step's.
json parameter_groups(const CheckpointState& state, const ModelConfig& model, const std::vector<DiskNames>& names) {
  const Job job = optimizer_job(state);
  const OptimizerConfig& adamw = job.optimizer;
  std::set<std::string> norms;
  for (const UnitDeclaration& unit : declare_model(model))
    for (const ParameterDeclaration& parameter : unit.parameters)
      if (!parameter.decay) norms.insert(parameter.name);
  json groups = json::array();
  for (const bool decay : {true, false}) {
    json parameters = json::array();
    for (const DiskNames& parameter : names)
      if (norms.contains(parameter.parameter) != decay)
        for (const std::string& name : dcp_parameters(parameter)) parameters.push_back(name);
    const json options = {{"lr", learning_rate(job.schedule, adamw.lr, job.run.steps, state.step + 1)},
                          {"betas", {adamw.beta1, adamw.beta2}},
                          {"eps", adamw.eps},
                          {"weight_decay", decay ? adamw.weight_decay : 0.0}};
    groups.push_back({{"options", options}, {"params", parameters}});
  }
  return groups;
}

void to_dcp(CheckpointReader& from, const OutputOptions& options) {
  const ModelConfig model = model_of(from);
  const std::vector<DiskNames> names = disk_names(model);
  std::vector<DcpTensor> tensors = dcp_tensors(names, model.tie_word_embeddings);
  const std::string of_parameters = state_tensor_name(kind_parameter, "");
  std::erase_if(tensors, [&](const DcpTensor& tensor) {  // frozen parameters have no moments
    return !tensor.source.starts_with(of_parameters) && !from.manifest().tensors.contains(tensor.source);
  });
  const json head = {{"tensors", describe(tensors, from.manifest())},
                     {"updates", from.state().updates},
                     {"groups", parameter_groups(from.state(), model, names)},
                     {"state", state_text(from.state())}};
  const OutputFolder folder(options.output, options.when_there(), is_dcp_file);
  folder.create();
  try {
    options.write("to-dcp", bytes_of_tensors(from.manifest()), [&](const BytesDone& done) {
      PythonPipe python(python_module, {"write", folder.aside().string()});
      python.write_line(head.dump());
      for (size_t i = 0; i < tensors.size(); ++i) {
        if (i > 0 && tensors[i].source == tensors[i - 1].source) continue;  // another range of the same
        for_each_block(from, tensors[i].source, [&](int64_t, const at::Tensor& block) {
          python.write(memory_of(block));
          done(block.nbytes());
        });
      }
      python.finish();
      for (const auto& entry : std::filesystem::directory_iterator(folder.aside())) flush_to_disk(entry.path());
      folder.publish();
    });
  } catch (...) {
    folder.discard();
    throw;
  }
}

// What the reading process says it has, held against what the model needs; returns each source's type.
std::map<std::string, StoredDtype> check_offer(const json& offered, const std::vector<DcpTensor>& tensors,
                                               const std::string& folder) {
  std::map<std::string, StoredDtype> dtypes;
  for (const DcpTensor& tensor : tensors) {
    const auto found = offered.find(tensor.name());
    if (found == offered.end()) user_error("{} has no tensor \"{}\", which its model needs.", folder, tensor.name());
    const auto shape = (*found)["shape"].get<std::vector<int64_t>>();
    if (shape != tensor.shape)
      user_error("tensor \"{}\" has shape {} in {}, but its model makes it {}.", tensor.name(), text_of(shape), folder,
                 text_of(tensor.shape));
    const auto type = (*found)["dtype"].get<std::string>();
    const auto dtype = stored_dtype_named(type);
    if (!dtype || !converts_to_fp32(*dtype))
      user_error("tensor \"{}\" in {} has type {}, and a checkpoint holds floating-point numbers.", tensor.name(),
                 folder, type);
    if (dtypes.try_emplace(tensor.source, *dtype).first->second != *dtype)
      user_error("tensor \"{}\" in {} has type {}, unlike what it is stored with.", tensor.name(), folder, type);
  }
  return dtypes;
}

// What AdamW counted, the same for all parameters; 0 without moments.
int64_t updates_of(const json& steps, const DcpPlaces& places, const std::vector<DcpTensor>& tensors,
                   const std::string& folder) {
  std::optional<double> updates;
  const std::string moment = fmt::format(".{}", AdamW::exp_avg);
  for (const DcpTensor& tensor : tensors) {
    const std::string name = tensor.name();
    if (!places.optimizer || !name.starts_with(*places.optimizer) || !name.ends_with(moment)) continue;
    const std::string step = name.substr(0, name.size() - moment.size()) + ".step";
    const auto found = steps.find(step);
    if (found == steps.end())
      user_error("{} has no tensor \"{}\": how often AdamW has updated the parameter is not known.", folder, step);
    if (updates.value_or(*found) != *found)
      user_error("\"{}\" in {} is {}, but another parameter's is {}, and Conclave updates all together.", step, folder,
                 found->get<double>(), *updates);
    updates = *found;
  }
  return static_cast<int64_t>(updates.value_or(0));
}

// What a folder holds beside the model is named once, and left out.
void warn_of_rest(const json& offered, const std::vector<DcpTensor>& tensors, const json& steps,
                  const std::string& tied_head) {
  std::set<std::string> taken = {tied_head};
  for (const DcpTensor& tensor : tensors) taken.insert(tensor.name());
  std::vector<std::string> rest;
  for (const auto& [name, tensor] : offered.items())
    if (!taken.contains(name) && !steps.contains(name)) rest.push_back(name);
  if (rest.empty()) return;
  const size_t count = rest.size();
  rest.resize(std::min<size_t>(count, 3));
  fmt::print(stderr, "warning: {} tensors are not the model's or AdamW's and are left out: {}{}\n", count,
             fmt::join(rest, ", "), count > 3 ? ", ..." : "");
}

// A checkpoint as a DCP folder has it.
struct Incoming {
  CheckpointState state;
  std::vector<DiskNames> names;
  std::vector<DcpTensor> tensors;  // those that the folder has; the others are zeros
};

Incoming incoming(const json& head, const std::filesystem::path& from,
                  const std::optional<std::filesystem::path>& config) {
  const std::string folder = from.string();
  if (head.contains("state")) {
    if (config)
      user_error("--config is {}, but {} says itself which model it holds. Leave --config out.", config->string(),
                 folder);
    Incoming result{parse_manifest(head["state"].get<std::string>(), folder).state, {}, {}};
    const ModelConfig model = parse_model_config(result.state.model_config, "the model config in " + folder);
    result.names = disk_names(model);
    result.tensors = dcp_tensors(result.names, /*tied=*/false);  // the table is there once
    return result;
  }
  if (!config)
    user_error(
        "{} does not say which model it holds: `conclave ckpt to-dcp` has not written it. Give --config, the "
        "model's config.json or its folder.",
        folder);
  const ModelConfig model = read_model_config(*config);
  Incoming result{state_of_imported(model), disk_names(model), {}};
  const DcpPlaces places = find_places(head["tensors"], folder);
  result.tensors = dcp_tensors_at(places, result.names, head["tensors"]);
  result.state.step = result.state.updates = updates_of(head["steps"], places, result.tensors, folder);
  if (!places.optimizer) fmt::print(stderr, "warning: {} holds no moments of AdamW: they begin as zeros\n", folder);
  warn_of_rest(head["tensors"], result.tensors, head["steps"],
               model.tie_word_embeddings ? places.model + "lm_head.weight" : "");
  return result;
}

void from_dcp(const std::filesystem::path& from, const std::optional<std::filesystem::path>& config,
              const OutputOptions& options) {
  if (!std::filesystem::exists(from / ".metadata"))
    user_error("{} is not a distributed checkpoint of PyTorch: it has no .metadata.", from.string());
  OutputFolder(options.output, options.when_there(), is_checkpoint_file).check();
  PythonPipe python(python_module, {"read", from.string()});
  const json head = parse_strict_json(python.read_line(), from.string());
  if (head.contains("refusal")) user_error("{}", head["refusal"].get<std::string>());
  const Incoming in = incoming(head, from, config);
  const std::map<std::string, StoredDtype> dtypes = check_offer(head["tensors"], in.tensors, from.string());

  std::vector<SafetensorsHeader::Entry> entries;
  json order = json::array();
  for (std::string_view kind : {kind_parameter, AdamW::exp_avg, AdamW::exp_avg_sq}) {
    for (const DiskNames& parameter : in.names) {
      const std::string name = state_tensor_name(kind, parameter.parameter);
      const auto dtype = dtypes.find(name);
      entries.push_back({name, dtype == dtypes.end() ? StoredDtype::F32 : dtype->second, parameter.shape});
    }
  }
  for (const DcpTensor& tensor : in.tensors) order.push_back(tensor.name());
  python.write_line(order.dump());

  uint64_t bytes = 0;
  for (const auto& entry : entries) bytes += checked_numel(entry.shape).value() * bits_of(entry.dtype) / 8;
  options.write("from-dcp", bytes, [&](const BytesDone& done) {
    CheckpointStream out(options.output, in.state, entries, 1, options.when_there());
    for (const auto& entry : entries) {
      const at::TensorOptions type(scalar_type_of(entry.dtype).value());
      const int64_t numel = checked_numel(entry.shape).value();
      const auto per_block = static_cast<int64_t>(default_hash_block_bytes * 8 / bits_of(entry.dtype));
      const at::Tensor memory = at::zeros({std::min(numel, per_block)}, type);
      for (int64_t begin = 0; begin < numel; begin += per_block) {
        const at::Tensor block = memory.narrow(0, 0, std::min(per_block, numel - begin));
        if (dtypes.contains(entry.name)) python.read(memory_of(block));
        out.append(block);
        done(block.nbytes());
      }
    }
    python.finish();
    out.finish();
  });
}

}  // namespace

void add_ckpt_dcp(CLI::App& ckpt) {
  struct Options {
    std::filesystem::path from;
    std::optional<std::filesystem::path> config;  // from-dcp's
    OutputOptions output;
  };
  auto to = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand("to-dcp", "write a checkpoint as a distributed checkpoint of PyTorch");
  command->add_option("checkpoint", to->from, "a checkpoint's folder, or a run's")->required();
  add_output_options(*command, to->output, "output", "the folder to write, for torch.distributed.checkpoint.load");
  command->footer(
      "It is what torch.distributed.checkpoint.save writes of {\"model\": get_model_state_dict(model), \"optimizer\": "
      "get_optimizer_state_dict(model, AdamW)} of a Transformers 5 model; dcp_to_torch_save and loads of a part work. "
      "conclave.state holds the step and the job, for from-dcp.");
  command->callback([to] {
    CheckpointReader from(checkpoint_of(to->from));
    to_dcp(from, to->output);
  });

  auto back = std::make_shared<Options>();
  command = ckpt.add_subcommand("from-dcp", "write a distributed checkpoint of PyTorch as a checkpoint");
  command->add_option("folder", back->from, "what to-dcp or torch.distributed.checkpoint.save has written")->required();
  command->add_option("--config", back->config,
                      "the model's config.json or its folder, of a folder that PyTorch wrote");
  add_output_options(*command, back->output, "output",
                     "the checkpoint's folder to write; as RUN/checkpoints/step-00000000 a run goes on with it");
  command->footer(
      "PyTorch's own folders hold a model of Transformers (by its state_dict(), under any prefix) and, if they have "
      "it, "
      "AdamW's state by get_optimizer_state_dict. The step is AdamW's; the position in the data is not known.");
  command->callback([back] { from_dcp(back->from, back->config, back->output); });
}

}  // namespace conclave
