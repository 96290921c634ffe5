// conclave ckpt diff: two checkpoints, or Hugging Face folders, tensor by tensor.
#include <fmt/core.h>

#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "apps/ckpt.h"
#include "base/error.h"
#include "checkpoint/tensor_comparison.h"
#include "families/family.h"

namespace conclave {
namespace {

const char* name_of(Comparison result) {
  switch (result) {
    case Comparison::equal:
      return "equal";
    case Comparison::differs:
      return "differs";
    case Comparison::reshaped:
      return "shape";
    case Comparison::only_in_first:
      return "only in the first";
    case Comparison::only_in_second:
      return "only in the second";
  }
  return "";
}

// One of the two folders, opened.
struct Side {
  std::optional<CheckpointReader> checkpoint;
  std::optional<HuggingFaceFiles> hugging_face;
};

bool is_hugging_face(const std::filesystem::path& folder) {
  return std::filesystem::exists(folder / single_file_name) || std::filesystem::exists(folder / index_file_name);
}

Side open(const std::filesystem::path& given) {
  Side side;
  if (is_hugging_face(given)) {
    side.hugging_face.emplace(given);
  } else {
    side.checkpoint.emplace(checkpoint_of(given));
  }
  return side;
}

uint64_t bytes_of(const FiledTensors& tensors) {
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors)
    bytes += static_cast<uint64_t>(checked_numel(tensor.shape).value()) * bits_of(tensor.dtype) / 8;
  return bytes;
}

std::string describe(const TensorDifference& difference) {
  const auto side = [&](int i) {
    return fmt::format("{} {}", name_of(difference.dtypes[i]), text_of(difference.shapes[i]));
  };
  switch (difference.result) {
    case Comparison::differs:
      return fmt::format(
          "differs: max {:.3g}, mean {:.3g}, {} of {} elements{}", difference.largest, difference.mean,
          difference.unequal, difference.elements,
          difference.dtypes[0] == difference.dtypes[1]
              ? ""
              : fmt::format(", {} and {}", name_of(difference.dtypes[0]), name_of(difference.dtypes[1])));
    case Comparison::reshaped:
      return fmt::format("shape: {} and {}", side(0), side(1));
    case Comparison::only_in_first:
      return fmt::format("only in the first: {}", side(0));
    case Comparison::only_in_second:
      return fmt::format("only in the second: {}", side(1));
    case Comparison::equal:
      break;
  }
  return "equal";
}

void print(const std::vector<TensorDifference>& differences, bool all) {
  int64_t counts[5] = {};
  for (const TensorDifference& difference : differences) {
    ++counts[static_cast<int>(difference.result)];
    if (difference.result != Comparison::equal || all) fmt::print("{}  {}\n", difference.name, describe(difference));
  }
  fmt::print("{} tensors: {} equal, {} differ, {} of another shape, {} only in the first, {} only in the second\n",
             differences.size(), counts[0], counts[1], counts[2], counts[3], counts[4]);
}

void print_json(const std::vector<TensorDifference>& differences) {
  using nlohmann::ordered_json;
  ordered_json list = ordered_json::array();
  for (const TensorDifference& difference : differences) {
    ordered_json object = {{"name", difference.name}, {"result", name_of(difference.result)}};
    for (int i : {0, 1}) {
      const bool is_there = difference.result != (i == 0 ? Comparison::only_in_second : Comparison::only_in_first);
      object["dtypes"].push_back(is_there ? ordered_json(name_of(difference.dtypes[i])) : ordered_json());
      object["shapes"].push_back(is_there ? ordered_json(difference.shapes[i]) : ordered_json());
    }
    if (difference.result == Comparison::equal || difference.result == Comparison::differs) {
      // JSON has no NaN: null.
      const auto number = [](double value) { return std::isfinite(value) ? ordered_json(value) : ordered_json(); };
      object["max_difference"] = number(difference.largest);
      object["mean_difference"] = number(difference.mean);
      object["unequal"] = difference.unequal;
      object["elements"] = difference.elements;
    }
    list.push_back(std::move(object));
  }
  fmt::print("{}\n", list.dump());
}

std::vector<TensorDifference> compare_folders(const std::filesystem::path& a, const std::filesystem::path& b,
                                              ByteProgress::Show show) {
  Side sides[2] = {open(a), open(b)};
  FiledTensors tensors[2];
  std::vector<DiskNames> names;  // outlives the tensors' use
  for (int i : {0, 1}) {
    const Side& other = sides[1 - i];
    if (sides[i].hugging_face) {
      tensors[i] = tensors_of(*sides[i].hugging_face);
    } else if (other.hugging_face) {
      names = disk_names(model_of(*sides[i].checkpoint));
      tensors[i] = tensors_of(*sides[i].checkpoint, names, *other.hugging_face);
    } else {
      tensors[i] = tensors_of(*sides[i].checkpoint);
    }
  }
  ByteProgress progress("diff", bytes_of(tensors[0]) + bytes_of(tensors[1]), show);
  return compare(tensors[0], tensors[1], [&](uint64_t bytes) { progress.add(bytes); });
}

}  // namespace

void add_ckpt_diff(CLI::App& ckpt, int& exit_code) {
  struct Options {
    std::filesystem::path a, b;
    bool all = false;
    bool json = false;
    bool quiet = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = ckpt.add_subcommand(
      "diff", "compare two checkpoints, or Hugging Face folders, tensor by tensor; exit code 1 when they differ");
  command->add_option("first", options->a, "a checkpoint's folder, a run's, or a Hugging Face folder")->required();
  command->add_option("second", options->b, "the same")->required();
  command->add_flag("--all", options->all, "list equal tensors too");
  command->add_flag("--json", options->json, "print a JSON array with an object for every tensor");
  command->add_flag("--quiet", options->quiet, "print nothing: the exit code tells");
  command->footer(
      "Equal means every bit. A checkpoint and a Hugging Face folder are compared by the names in the latter, without "
      "the optimizer's state.");
  command->callback([options, &exit_code] {
    const bool plain = !options->json && !options->quiet;
    const auto differences =
        compare_folders(options->a, options->b, plain ? ByteProgress::Show::on_terminal : ByteProgress::Show::never);
    for (const TensorDifference& difference : differences)
      if (difference.result != Comparison::equal) exit_code = exit_failure;
    if (options->quiet) return;
    if (options->json) {
      print_json(differences);
    } else {
      print(differences, options->all);
    }
  });
}

}  // namespace conclave
