// torch.classes.conclave.CheckpointWriter and CheckpointReader, torch.ops.conclave.load_checkpoint: the program's own
// checkpoints, of what a script's ranks hold.
#include <ATen/ATen.h>
#include <torch/custom_class.h>

#include "base/error.h"
#include "checkpoint/agreed_load.h"
#include "checkpoint/checkpoint_writer.h"
#include "operators/process_group_communicator.h"

namespace conclave {
namespace {

using Texts = c10::Dict<std::string, std::string>;
using Numbers = c10::Dict<std::string, int64_t>;
using Values = c10::Dict<std::string, std::vector<double>>;
using Shapes = std::vector<std::vector<int64_t>>;

// By place: name, global shape, first element, and the elements, 1-D and contiguous.
std::vector<TensorSlice> slices_of(const std::vector<std::string>& names, const Shapes& shapes,
                                   const std::vector<int64_t>& begins, const std::vector<at::Tensor>& data) {
  check_invariant(names.size() == shapes.size() && names.size() == begins.size() && names.size() == data.size(),
                  "{} names, {} shapes, {} begins, {} tensors", names.size(), shapes.size(), begins.size(),
                  data.size());
  std::vector<TensorSlice> slices;
  slices.reserve(names.size());
  for (size_t i = 0; i < names.size(); ++i) slices.push_back({names[i], shapes[i], begins[i], data[i].detach()});
  return slices;
}

template <class Value>
std::map<std::string, Value> map_of(const c10::Dict<std::string, Value>& dict) {
  std::map<std::string, Value> map;
  for (const auto& entry : dict) map.emplace(entry.key(), entry.value());
  return map;
}

template <class Value>
c10::Dict<std::string, Value> dict_of(const std::map<std::string, Value>& map) {
  c10::Dict<std::string, Value> dict;
  for (const auto& [key, value] : map) dict.insert(key, value);
  return dict;
}

class ScriptCheckpointWriter final : public torch::CustomClassHolder {
 public:
  // `group`: of all ranks, for CPU tensors.
  // NOLINTNEXTLINE(performance-unnecessary-value-param): PyTorch hands strings by value
  ScriptCheckpointWriter(std::string folder, std::string group, int64_t keep, int64_t keep_every)
      : world_(communicator_of("world", group, at::kCPU)), writer_(folder, *world_, Retention{keep, keep_every}) {}

  // Collective, with no save under way. `numbers`: step, samples, tokens, seed, updates.
  void begin(const Numbers& numbers, const std::string& model_config, const Numbers& layout, const Texts& versions,
             const Values& values, const std::vector<std::string>& names, const Shapes& shapes,
             const std::vector<int64_t>& begins, const std::vector<at::Tensor>& data) {
    CheckpointState state;
    state.step = numbers.at("step");
    state.samples = numbers.at("samples");
    state.tokens = numbers.at("tokens");
    state.seed = static_cast<uint64_t>(numbers.at("seed"));
    state.updates = numbers.at("updates");
    state.model_config = model_config;
    state.layout = map_of(layout);
    state.versions = map_of(versions);
    state.values = map_of(values);
    writer_.begin(state, slices_of(names, shapes, begins, data));
  }
  void take_back() { writer_.take_back(); }
  bool is_saving() const { return writer_.saving().has_value(); }
  bool is_busy() const { return writer_.is_busy(); }
  // Collective; with a save under way and no rank busy. The folder, once it is whole; else "".
  std::string go_on() {
    const std::optional<FinishedSave> done = writer_.go_on();
    return done ? done->path.string() : "";
  }
  // Collective, with a save under way.
  std::string finish() { return writer_.finish().path.string(); }

 private:
  std::unique_ptr<Communicator> world_;
  CheckpointWriter writer_;
};

class ScriptCheckpointReader final : public torch::CustomClassHolder {
 public:
  explicit ScriptCheckpointReader(const std::string& checkpoint) : reader_(checkpoint) {}

  Numbers numbers() const {
    const CheckpointState& state = reader_.state();
    return dict_of(std::map<std::string, int64_t>{{"step", state.step},
                                                  {"samples", state.samples},
                                                  {"tokens", state.tokens},
                                                  {"seed", static_cast<int64_t>(state.seed)},
                                                  {"updates", state.updates}});
  }
  Values values() const { return dict_of(reader_.state().values); }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : reader_.manifest().tensors) names.push_back(name);
    return names;
  }

 private:
  CheckpointReader reader_;
};

// In the order in which a run tries to go on from them.
// NOLINTBEGIN(performance-unnecessary-value-param): PyTorch hands strings by value
std::vector<std::string> checkpoint_candidates(std::string folder) {
  std::vector<std::string> paths;
  for (const auto& path : checkpoints_to_try(folder)) paths.push_back(path.string());
  return paths;
}

// Fills the tensors from the first candidate that no rank finds damaged, and returns its path; damaged ones are told.
// Collective over the group.
std::string load_checkpoint(const std::vector<std::string>& candidates, std::string group, bool verify,
                            const std::vector<std::string>& names, const std::vector<at::Tensor>& shapes,
                            const std::vector<int64_t>& begins, const std::vector<at::Tensor>& data) {
  const auto world = communicator_of("world", group, at::kCPU);
  Shapes sizes;
  for (const at::Tensor& shape : shapes)
    sizes.emplace_back(shape.const_data_ptr<int64_t>(), shape.const_data_ptr<int64_t>() + shape.numel());
  const std::vector<TensorSlice> slices = slices_of(names, sizes, begins, data);
  const std::vector<std::filesystem::path> paths(candidates.begin(), candidates.end());
  const auto loaded = load_agreed(paths, *world, WhenDamaged::try_next, verify ? HashCheck::verify : HashCheck::skip,
                                  [&](const CheckpointReader&) { return slices; });
  return loaded ? loaded->path.string() : "";
}
// NOLINTEND(performance-unnecessary-value-param)

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.class_<ScriptCheckpointWriter>("CheckpointWriter")
      .def(torch::init<std::string, std::string, int64_t, int64_t>())
      .def("begin", &ScriptCheckpointWriter::begin)
      .def("take_back", &ScriptCheckpointWriter::take_back)
      .def("is_saving", &ScriptCheckpointWriter::is_saving)
      .def("is_busy", &ScriptCheckpointWriter::is_busy)
      .def("go_on", &ScriptCheckpointWriter::go_on)
      .def("finish", &ScriptCheckpointWriter::finish);
  library.class_<ScriptCheckpointReader>("CheckpointReader")
      .def(torch::init<std::string>())
      .def("numbers", &ScriptCheckpointReader::numbers)
      .def("values", &ScriptCheckpointReader::values)
      .def("names", &ScriptCheckpointReader::names);
  library.def("checkpoint_candidates(str folder) -> str[]");
  library.def(
      "load_checkpoint(str[] candidates, str group, bool verify, str[] names, Tensor[] shapes, int[] begins, Tensor[] "
      "data) -> str");
}

TORCH_LIBRARY_IMPL(conclave, CompositeExplicitAutograd, library) {
  library.impl("checkpoint_candidates", checkpoint_candidates);
  library.impl("load_checkpoint", load_checkpoint);
}

}  // namespace conclave
