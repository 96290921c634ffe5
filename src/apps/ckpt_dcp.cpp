// conclave ckpt to-dcp and from-dcp: between checkpoints and PyTorch's distributed checkpoints (DCP). What a checkpoint
// holds is known here, what a DCP folder holds is known to PyTorch: `python -m conclave.ckpt` reads and writes it with
// PyTorch's own classes, and every tensor goes through a pipe between the two.
#include <ATen/ATen.h>
#include <fmt/core.h>

#include <memory>
#include <nlohmann/json.hpp>

#include "apps/ckpt.h"
#include "apps/python_pipe.h"
#include "base/atomic_file.h"
#include "base/error.h"
#include "checkpoint/checkpoint_blocks.h"
#include "checkpoint/checkpoint_stream.h"
#include "checkpoint/safetensors_reader.h"
#include "train/disk_names.h"

namespace conclave {
namespace {

using nlohmann::json;

constexpr const char* python_module = "conclave.ckpt";
constexpr std::string_view kinds[] = {kind_parameter, kind_exp_avg, kind_exp_avg_sq};

// A tensor of a DCP folder, which is a range of a checkpoint's tensor.
struct DcpTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::string source;  // the checkpoint's tensor
};

// The names that torch.distributed.checkpoint gives {"model": model.state_dict(), "optimizer": {"state": {parameter:
// {"exp_avg": ...}}}} of a Transformers 5 model: experts fused, query, key and value apart.
std::string dcp_name(std::string_view kind, const std::string& parameter) {
  if (kind == kind_parameter) return "model." + parameter;
  return fmt::format("optimizer.state.{}.{}", parameter, kind);
}

// All of them, in the order in which they pass through the pipe.
std::vector<DcpTensor> dcp_tensors(const std::vector<DiskNames>& names) {
  std::vector<DcpTensor> tensors;
  for (std::string_view kind : kinds) {
    for (const DiskNames& parameter : names) {
      const std::vector<DiskTensor>& form = parameter.alternative.empty() ? parameter.parts : parameter.alternative;
      for (const DiskTensor& part : form)
        tensors.push_back({dcp_name(kind, part.name), part.shape, state_tensor_name(kind, parameter.parameter)});
    }
  }
  return tensors;
}

// State and model of a checkpoint as one text: a manifest without tensors.
std::string state_text(const CheckpointState& state) {
  return manifest_text(Manifest{state, default_hash_block_bytes, {}, {}});
}

bool is_dcp_file(std::string_view name) {
  return name == ".metadata" || name.ends_with(".distcp");
}

json describe(const std::vector<DcpTensor>& tensors, const Manifest& manifest) {
  json list = json::array();
  for (const DcpTensor& tensor : tensors) {
    const auto source = manifest.tensors.find(tensor.source);
    if (source == manifest.tensors.end()) user_error("the checkpoint has no tensor \"{}\".", tensor.source);
    list.push_back({{"name", tensor.name}, {"shape", tensor.shape}, {"dtype", name_of(source->second.dtype)}});
  }
  return list;
}

void to_dcp(CheckpointReader& from, const OutputOptions& options) {
  const std::vector<DiskNames> names = mixtral_disk_names(model_of(from));
  const json head = {{"tensors", describe(dcp_tensors(names), from.manifest())}, {"state", state_text(from.state())}};
  const OutputFolder folder(options.output, options.when_there(), is_dcp_file);
  folder.create();
  try {
    options.write("to-dcp", bytes_of_tensors(from.manifest()), [&](const BytesDone& done) {
      PythonPipe python(python_module, {"write", folder.aside().string()});
      python.write_line(head.dump());
      for (std::string_view kind : kinds) {
        for (const DiskNames& parameter : names) {
          for_each_block(from, state_tensor_name(kind, parameter.parameter), [&](int64_t, const at::Tensor& block) {
            python.write(memory_of(block));
            done(block.nbytes());
          });
        }
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
    const auto found = offered.find(tensor.name);
    if (found == offered.end()) user_error("{} has no tensor \"{}\", which its model needs.", folder, tensor.name);
    const auto shape = (*found)["shape"].get<std::vector<int64_t>>();
    if (shape != tensor.shape)
      user_error("tensor \"{}\" has shape {} in {}, but its model makes it {}.", tensor.name, text_of(shape), folder,
                 text_of(tensor.shape));
    const auto dtype = stored_dtype_named((*found)["dtype"].get<std::string>());
    if (!dtype || dtypes.try_emplace(tensor.source, *dtype).first->second != *dtype)
      user_error("tensor \"{}\" in {} has type {}, unlike what it is stored with.", tensor.name, folder,
                 (*found)["dtype"].get<std::string>());
  }
  return dtypes;
}

void from_dcp(const std::filesystem::path& from, const OutputOptions& options) {
  if (!std::filesystem::exists(from / ".metadata"))
    user_error("{} is not a distributed checkpoint of PyTorch: it has no .metadata.", from.string());
  OutputFolder(options.output, options.when_there(), is_checkpoint_file).check();
  PythonPipe python(python_module, {"read", from.string()});
  const json head = json::parse(python.read_line());
  if (!head.contains("state"))
    user_error(
        "{} has no tensor \"conclave.state\", which `conclave ckpt to-dcp` writes: step and model are not known. Save "
        "the model with save_pretrained and use `conclave ckpt import`.",
        from.string());
  const CheckpointState state = parse_manifest(head["state"].get<std::string>(), from.string()).state;
  const std::vector<DiskNames> names =
      mixtral_disk_names(parse_model_config(state.model_config, "the model config in " + from.string()));
  const std::vector<DcpTensor> tensors = dcp_tensors(names);
  const std::map<std::string, StoredDtype> dtypes = check_offer(head["tensors"], tensors, from.string());

  std::vector<SafetensorsHeader::Entry> entries;
  json order = json::array();
  for (std::string_view kind : kinds) {
    for (const DiskNames& parameter : names) {
      const std::string name = state_tensor_name(kind, parameter.parameter);
      entries.push_back({name, dtypes.at(name), parameter.shape});
    }
  }
  for (const DcpTensor& tensor : tensors) order.push_back(tensor.name);
  python.write_line(order.dump());

  uint64_t bytes = 0;
  for (const auto& entry : entries) bytes += checked_numel(entry.shape).value() * bits_of(entry.dtype) / 8;
  options.write("from-dcp", bytes, [&](const BytesDone& done) {
    CheckpointStream out(options.output, state, entries, 1, options.when_there());
    for (const auto& entry : entries) {
      const at::TensorOptions type(scalar_type_of(entry.dtype).value());
      const int64_t numel = checked_numel(entry.shape).value();
      const auto per_block = static_cast<int64_t>(default_hash_block_bytes * 8 / bits_of(entry.dtype));
      const at::Tensor memory = at::empty({std::min(numel, per_block)}, type);
      for (int64_t begin = 0; begin < numel; begin += per_block) {
        const at::Tensor block = memory.narrow(0, 0, std::min(per_block, numel - begin));
        python.read(memory_of(block));
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
    OutputOptions output;
  };
  auto to = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand("to-dcp", "write a checkpoint as a distributed checkpoint of PyTorch");
  command->add_option("checkpoint", to->from, "a checkpoint's folder, or a run's")->required();
  add_output_options(*command, to->output, "output", "the folder to write, for torch.distributed.checkpoint.load");
  command->footer(
      "Names are those of {\"model\": model.state_dict()} of a Transformers 5 model, and optimizer.state.<parameter>."
      "exp_avg and exp_avg_sq. conclave.state holds the step and the job, for from-dcp.");
  command->callback([to] {
    CheckpointReader from(checkpoint_of(to->from));
    to_dcp(from, to->output);
  });

  auto back = std::make_shared<Options>();
  command = ckpt.add_subcommand("from-dcp", "write what to-dcp has written as a checkpoint again");
  command->add_option("folder", back->from, "a distributed checkpoint of PyTorch with conclave.state")->required();
  add_output_options(*command, back->output, "output", "the checkpoint's folder to write");
  command->callback([back] { from_dcp(back->from, back->output); });
}

}  // namespace conclave
