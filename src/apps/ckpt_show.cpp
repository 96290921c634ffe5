// conclave ckpt show: what one checkpoint holds.
#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/ckpt.h"
#include "base/strict_json.h"
#include "checkpoint/checkpoint_blocks.h"

namespace conclave {
namespace {

using nlohmann::ordered_json;

ordered_json to_json(const CheckpointReader& checkpoint) {
  const CheckpointState& state = checkpoint.state();
  ordered_json object = {{"path", checkpoint.path().string()},
                         {"step", state.step},
                         {"updates", state.updates},
                         {"samples", state.samples},
                         {"tokens", state.tokens},
                         {"seed", state.seed},
                         {"layout", state.layout},
                         {"versions", state.versions},
                         {"values", state.values},
                         {"job", state.job},
                         {"model_config", ordered_json()},
                         {"files", checkpoint.manifest().files},
                         {"tensors", ordered_json::object()}};
  if (!state.model_config.empty())
    object["model_config"] = parse_strict_json(state.model_config, "the model config of the checkpoint");
  for (const auto& [name, tensor] : checkpoint.manifest().tensors) {
    object["tensors"][name] = {{"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}};
  }
  return object;
}

template <class Map>
void print_map(const char* title, const Map& map) {
  if (map.empty()) return;
  fmt::print("{}\n", title);
  for (const auto& [key, value] : map) fmt::print("  {:<36} {}\n", key, value);
}

void print(const CheckpointReader& checkpoint) {
  const CheckpointState& state = checkpoint.state();
  const Manifest& manifest = checkpoint.manifest();
  fmt::print("checkpoint {}\n", checkpoint.path().string());
  fmt::print("  step {}, {} updates, {} tokens, next sample {}, seed {}\n", state.step, state.updates, state.tokens,
             state.samples, state.seed);
  fmt::print("  {} tensors, {}, in {} files\n", manifest.tensors.size(), byte_count(bytes_of_tensors(manifest)),
             manifest.files.size());
  print_map("layout it was written at (any other can load it)", state.layout);
  print_map("versions", state.versions);
  print_map("job", state.job);
  fmt::print("files\n");
  for (const auto& [file, bytes] : manifest.files) fmt::print("  {:<36} {:>10}\n", file, byte_count(bytes));
  size_t width = 0;
  for (const auto& [name, tensor] : manifest.tensors) width = std::max(width, name.size());
  fmt::print("tensors\n");
  for (const auto& [name, tensor] : manifest.tensors) {
    fmt::print("  {:<{}}  {:<5}{:>10}  {}\n", name, width, name_of(tensor.dtype), byte_count(bytes_of(tensor)),
               text_of(tensor.shape));
  }
}

}  // namespace

void add_ckpt_show(CLI::App& ckpt) {
  struct Options {
    std::filesystem::path checkpoint;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand("show", "a checkpoint's job, layout, files and tensors");
  command->add_option("checkpoint", options->checkpoint, "a checkpoint's folder, or a run's")->required();
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options] {
    const CheckpointReader checkpoint(checkpoint_of(options->checkpoint));
    if (options->json) {
      fmt::print("{}\n", to_json(checkpoint).dump());
    } else {
      print(checkpoint);
    }
  });
}

}  // namespace conclave
