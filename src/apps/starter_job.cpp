#include "apps/starter_job.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "apps/quantity_text.h"
#include "base/error.h"
#include "base/printable.h"
#include "base/shown_path.h"
#include "config/fields.h"
#include "config/job_file.h"
#include "data/indexed_tokens.h"
#include "families/family.h"
#include "planner/layout_search.h"

namespace conclave {
namespace {

struct StarterKey {
  std::string key;    // section.key
  std::string value;  // as YAML
  std::string note;   // instead of the key's own meaning
};
using StarterKeys = std::vector<StarterKey>;

// The token that ends the first documents, if one ends them all: what `conclave data build` puts behind each text.
std::optional<int64_t> end_of_document(const IndexedTokens& set) {
  constexpr int64_t looked_at = 64;
  const int64_t documents = std::min(looked_at, set.documents());
  if (documents < 2) return {};
  std::optional<int64_t> end;
  for (int64_t document = 0; document < documents; ++document) {
    const int64_t next = document + 1 < set.documents() ? set.first_token_of_document(document + 1) : set.tokens();
    if (next <= set.first_token_of_document(document)) return {};
    int64_t token = 0;
    set.read(next - 1, {&token, 1});
    if (end && *end != token) return {};
    end = token;
  }
  return end;
}

// A multiple of 64, which products like.
int64_t vocabulary_of(const StarterRequest& request, int64_t highest_token) {
  const int64_t least = highest_token + 1;
  if (!request.vocab_size) return (least + 63) / 64 * 64;
  if (*request.vocab_size < least)
    user_error("--vocab-size is {}, but the data have the token {}.\n       Use at least {}: the tokenizer's size.",
               *request.vocab_size, highest_token, least);
  return *request.vocab_size;
}

// The size's own, or the longest that leaves each rank a sample of the set.
int64_t sequence_length_for(const StarterSize& size, int64_t tokens, int ranks) {
  constexpr int64_t least = 8;
  if (tokens < least * ranks + 1)
    user_error("the data have {} tokens, too few for {} ranks.\n       Use more text, or fewer ranks.", tokens, ranks);
  int64_t length = size.sequence_length;
  while (length > least && (tokens - 1) / length < ranks) length /= 2;
  return length;
}

// Groups of neighbours, at most the GPUs of a machine: their tokens travel at every layer.
int64_t expert_degree_for(int64_t experts, int ranks) {
  int64_t degree = 1;
  for (int64_t candidate = 2; candidate <= std::min<int64_t>(ranks, 8); ++candidate)
    if (ranks % candidate == 0 && experts % candidate == 0) degree = candidate;
  return degree;
}

// A path of the job file: a text in quotes, in which $ is not the beginning of a variable.
std::string yaml_path(const std::filesystem::path& path) {
  std::string text;
  for (const char letter : path.string()) text += letter == '$' ? "$$" : std::string(1, letter);
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    user_error("the path {} is not UTF-8, so no job file can name it.", printable(path.string(), LineFeeds::escaped));
  }
}

struct StarterTraining {
  int64_t steps = 0;
  int64_t warmup = 0;
  int64_t tokens_per_step = 0;
  double epochs = 0;
};

// One pass over the data, within bounds: fewer steps than the least teach nothing, more than the most are for the user
// to ask for.
StarterTraining training_of(int64_t tokens, int64_t tokens_per_step) {
  StarterTraining training;
  training.tokens_per_step = tokens_per_step;
  training.steps = std::clamp<int64_t>(tokens / tokens_per_step, 200, 20000);
  training.warmup = std::clamp<int64_t>(training.steps / 50, 10, 500);
  training.epochs = static_cast<double>(training.steps * tokens_per_step) / static_cast<double>(tokens);
  return training;
}

StarterKeys keys_for(const StarterRequest& request, const StarterData& data, const ModelConfig& model,
                     int64_t sequence_length, const StarterTraining& training, const std::filesystem::path& folder) {
  const StarterSize& size = starter_size(request.size);
  const std::string name = request.output.stem().string();
  const bool on_cpu = request.device == "cpu";
  const int64_t checks = std::max<int64_t>(training.steps / 20, 1);
  StarterKeys keys = {
      {"run.name", nlohmann::json(name).dump(), ""},
      {"run.output_dir", yaml_path(std::filesystem::path("runs") / name),
       "metrics, checkpoints and the resolved job go here"},
      {"run.steps", fmt::format("{}", training.steps),
       fmt::format("{:.2g} {} over the data at {} tokens a step", training.epochs,
                   training.epochs == 1 ? "pass" : "passes", training.tokens_per_step)},
      {"run.device", on_cpu ? "cpu" : "cuda",
       on_cpu ? "cuda: one GPU for each rank" : "cpu: ranks of a few cores each"},
      {"model.config", yaml_path(folder), fmt::format("the shape of the model, with {} token ids", model.vocab_size)},
      {"data.train", yaml_path(data.train), ""},
  };
  if (data.validation) keys.push_back({"data.validation", yaml_path(*data.validation), ""});
  keys.push_back({"data.sequence_length", fmt::format("{}", sequence_length), ""});
  keys.push_back({"data.micro_batch_size", fmt::format("{}", size.micro_batch_size), ""});
  if (model.experts() > 0)
    keys.push_back({"parallel.expert_parallel_degree",
                    fmt::format("{}", expert_degree_for(model.experts(), request.ranks)),
                    fmt::format("so many ranks share the {} experts of a layer", model.experts())});
  keys.push_back(
      {"parallel.hybrid_shard_degree", "0", "0: parameters, gradients and optimizer state are sharded over all ranks"});
  keys.push_back({"optimizer.lr", fmt::format("{}", size.lr), ""});
  keys.push_back({"optimizer.weight_decay", "0.1", ""});
  keys.push_back({"schedule.kind", "cosine", ""});
  keys.push_back({"schedule.warmup_steps", fmt::format("{}", training.warmup), ""});
  keys.push_back({"schedule.min_lr", fmt::format("{}", size.lr / 10), ""});
  keys.push_back({"checkpoint.every", fmt::format("{}", std::max<int64_t>(training.steps / 5, 1)), ""});
  if (data.validation) keys.push_back({"validation.every", fmt::format("{}", checks), ""});
  return keys;
}

Job job_of(const StarterKeys& keys) {
  std::vector<std::string> overrides;
  for (const StarterKey& key : keys) overrides.push_back(key.key + "=" + key.value);
  return job_from_overrides(overrides);
}

// Takes "section.key=value" into the keys.
void change(StarterKeys& keys, const std::string& setting) {
  const size_t equals = setting.find('=');
  const std::string key = setting.substr(0, equals), value = setting.substr(equals + 1);
  const auto found = std::find_if(keys.begin(), keys.end(), [&](const StarterKey& one) { return one.key == key; });
  if (found != keys.end())
    found->value = value;
  else
    keys.push_back({key, value, ""});
}

// In the order of the sections, each key with its meaning.
std::string text_of(const StarterKeys& keys, const std::string& head) {
  Job defaults;
  const Fields fields = fields_of(defaults);
  std::string text = head;
  for (const Fields::Section& section : fields.sections()) {
    std::string lines;
    for (const auto& field : section.fields) {
      const auto found =
          std::find_if(keys.begin(), keys.end(), [&](const StarterKey& key) { return key.key == field->key(); });
      if (found == keys.end()) continue;
      lines += fmt::format("  {:<40}  # {}\n", field->name() + ": " + found->value,
                           found->note.empty() ? field->help() : found->note);
    }
    if (!lines.empty()) text += fmt::format("\n{}:\n{}", section.name, lines);
  }
  return text;
}

// A rank's part of this machine's memory, or what the device is said to have.
DeviceDescription device_of(const StarterRequest& request) {
  DeviceDescription device = read_device(request.device);
  if (request.device == "cpu")
    device.memory.bytes =
        static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE)) / request.ranks;
  return device;
}

[[noreturn]] void refuse_too_large(const StarterRequest& request, const Plan& plan, const LayoutSearch& search) {
  const double missing = search.too_large.empty() ? -plan.left_bytes() : -search.too_large.front().left_bytes;
  user_error(
      "a model of --size {} does not fit on {} {} of {}: the layout that needs least lacks {} a rank.\n       Use a "
      "smaller size, more ranks, or another --device.",
      request.size, request.ranks, request.ranks == 1 ? "rank" : "ranks", request.device, size_text(missing));
}

std::string command_of(const StarterRequest& request) {
  const std::string vocabulary = request.vocab_size ? fmt::format(" --vocab-size {}", *request.vocab_size) : "";
  return fmt::format("conclave init --family {} --size {} --data {} --ranks {} --device {}{} --output {}",
                     request.family, request.size, request.data.string(), request.ranks, request.device, vocabulary,
                     request.output.string());
}

std::string head_of(const StarterRequest& request, const ModelConfig& model) {
  const std::string job = printable(request.output.string());
  const char* ranks = request.ranks == 1 ? "rank" : "ranks";
  return fmt::format("# A {} {} for {} {}, written by\n#   {}\n# Start it:           conclave train {} --ranks {}\n",
                     request.size, family_of(model).name, request.ranks, ranks, printable(command_of(request)), job,
                     request.ranks) +
         fmt::format("# What a step needs:  conclave plan {} --world {}\n", job, request.ranks) +
         "# Keys that are left out have their defaults; conclave train --help lists every key.\n";
}

}  // namespace

StarterData find_starter_data(const std::filesystem::path& prefix) {
  std::string name = prefix.string();
  for (const char* end : {".bin", ".idx"})
    if (name.ends_with(end)) name.resize(name.size() - 4);
  std::error_code unknown;
  const auto is_there = [&](const std::string& set) { return std::filesystem::exists(set + ".idx", unknown); };
  if (is_there(name)) return {name, std::nullopt};
  if (!is_there(name + "-train"))
    user_error(
        "there are no token files {0}.bin and {0}.idx, nor {0}-train.bin and {0}-train.idx, as --data {1} names "
        "them.\n   "
        "    Make them of your text: conclave data build TEXT --tokenizer TOKENIZER.json --output {0} "
        "--validation-fraction 0.05",
        name, shown_path(prefix));
  StarterData data{name + "-train", std::nullopt};
  if (is_there(name + "-validation")) data.validation = name + "-validation";
  return data;
}

StarterJob make_starter_job(const StarterRequest& request) {
  const StarterSize& size = starter_size(request.size);
  const StarterData data = find_starter_data(request.data);
  const IndexedTokens train(data.train);
  int64_t highest = train.highest_token(), shortest_set = train.tokens();
  if (data.validation) {
    const IndexedTokens validation(*data.validation);
    highest = std::max(highest, validation.highest_token());
    shortest_set = std::min(shortest_set, (validation.tokens() - 1) * request.ranks + 1);  // one sample is enough
  }
  const int64_t length = sequence_length_for(size, shortest_set, request.ranks);
  const StarterTraining training = training_of(train.tokens(), request.ranks * size.micro_batch_size * length);

  const ModelConfig model =
      starter_model(request.family, size, vocabulary_of(request, highest), end_of_document(train));
  const std::filesystem::path folder = request.output.parent_path() / (request.output.stem().string() + "-model");
  StarterKeys keys = keys_for(request, data, model, length, training, folder);
  const DeviceDescription device = device_of(request);
  const auto planned = [&] {
    return make_plan(check_job(job_of(keys), model, request.ranks), request.device, device, 1);
  };
  Plan plan = planned();
  std::vector<std::string> adjusted;
  if (!plan.fits()) {
    const LayoutSearch search = search_layouts(plan.job, device, 1);
    if (search.fit.empty()) refuse_too_large(request, plan, search);
    adjusted = search.fit.front().changes;
    for (const std::string& setting : adjusted) change(keys, setting);
    plan = planned();
  }
  const std::string text = text_of(keys, head_of(request, model));
  return {text, folder, model, std::move(plan), training.epochs, adjusted};
}

}  // namespace conclave
