#include "config/job_difference.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "base/strict_json.h"
#include "config/fields.h"
#include "config/nearest_name.h"

namespace conclave {
namespace {

constexpr const char* model_prefix = "model.config: ";

// ---- the table: a key, or with a point or blank at its end all keys that begin so

struct Free {
  const char* key;
  const char* because;
};
constexpr Free free_keys[] = {
    {"run.name", "a name"},
    {"run.output_dir", "a place"},
    {"run.device", "results are equal up to rounding; precision.compute is compared as it was resolved"},
    {"run.timeout_seconds", "when to give up"},
    {"run.stop_after", "when to stop; the same run goes on later"},
    {"model.config", "a place; what is in it is compared"},
    {"model.init_from", "a checkpoint holds the weights"},
    {"model.upcycle_from", "a checkpoint holds the weights"},
    {"model.upcycle_noise", "a checkpoint holds the weights"},
    {"model.upcycle_reinit_fraction", "a checkpoint holds the weights"},
    {"model.resize_vocabulary", "compared as the model's vocab_size"},
    {"model.shrink_vocabulary", "a checkpoint holds the weights"},
    {"data.train", "a place; the data's fingerprint is compared"},
    {"data.validation", "nothing is learned from it"},
    {"data.micro_batch_size",
     "data.global_batch_size counts; a resumed run warns where the balancing loss spans another number of tokens"},
    {"parallel.", "the layout changes no result beyond rounding"},
    {"memory.", "recomputation and offloading change no bit"},
    {"moe.dispatcher", "how rows travel, not where"},
    {"moe.dispatch_chunks", "when rows travel, not where"},
    {"moe.global_token_shuffle", "tokens return to where they were"},
    {"moe.overload", "where rows are computed, not what becomes of them"},
    {"moe.max_tokens_per_rank_factor", "how many rows are computed at once"},
    {"moe.spill_threshold", "where rows are computed, not what becomes of them"},
    {"moe.spill_least_rows", "where rows are computed, not what becomes of them"},
    {"adapter.init_from", "a checkpoint holds the adapter"},
    {"optimizer.max_skipped_steps", "when to give up"},
    {"checkpoint.", "what is kept of a run is not what it is"},
    {"validation.", "nothing is learned from it"},
    {"metrics.", "what is reported"},
    {"model.config: initializer_range", "a checkpoint holds the weights"},
    {"model.config: max_position_embeddings", "sequences end before it"},
    {"model.config: bos_token_id", "for generation"},
    {"model.config: eos_token_id", "for generation"},
    {"model.config: pad_token_id", "for generation"},
    {"model.config: router_aux_loss_coef", "compared as moe.moe_aux_loss_coeff, which it is the default of"},
    {"model.config: router_jitter_noise", "compared as moe.router_jitter_noise, which it is the default of"},
};
// Without a falling learning rate, how far off the end is changes nothing.
constexpr const char* free_keys_of_constant_schedule[] = {"run.steps", "schedule.min_lr"};

bool is_free(const std::string& key, bool constant_schedule) {
  const auto covers = [&](const Free& free) {
    const std::string_view text = free.key;
    return text.ends_with('.') ? key.starts_with(text) : key == text;
  };
  return std::any_of(std::begin(free_keys), std::end(free_keys), covers) ||
         (constant_schedule &&
          std::find(std::begin(free_keys_of_constant_schedule), std::end(free_keys_of_constant_schedule), key) !=
              std::end(free_keys_of_constant_schedule));
}

std::string value_in(const KeyValues& values, const std::string& key) {
  const auto found = values.find(key);
  return found == values.end() ? "" : found->second;
}

}  // namespace

KeyValues values_of(Job job) {
  KeyValues values;
  const Fields fields = fields_of(job);
  for (const Field* field : fields.all()) values.emplace(field->key(), field->printed());
  return values;
}

KeyValues values_but_places_of(Job job) {
  KeyValues values;
  const Fields fields = fields_of(job);
  for (const Field* field : fields.all())
    if (!field->is_path()) values.emplace(field->key(), field->printed());
  const std::vector<DataSet> held_back = job.data.validation ? job.data.validation->sets : std::vector<DataSet>();
  for (const auto& [key, sets] :
       {std::pair("data.train", job.data.train.sets), std::pair("data.validation", held_back)})
    values.emplace(key, names_and_weights_of(sets));
  return values;
}

KeyValues values_of_model(const std::string& config_json) {
  KeyValues values;
  if (config_json.empty()) return values;  // a checkpoint that does not say what model it is of
  const nlohmann::json config = parse_strict_json(config_json, "the checkpoint's model config");
  if (!config.is_object()) return values;
  for (const auto& [key, value] : config.items()) values.emplace(model_prefix + key, value.dump());
  return values;
}

std::vector<Difference> differences_that_matter(const KeyValues& is, const KeyValues& was) {
  static const KeyValues defaults = values_of(Job());
  const bool constant = value_in(is, "schedule.kind") == "constant" && value_in(was, "schedule.kind") == "constant";
  std::vector<Difference> differences;
  for (const auto& [key, value] : is) {
    const std::string before = was.contains(key) ? was.at(key) : value_in(defaults, key);
    if (before != value && !is_free(key, constant)) differences.push_back({key, value, before});
  }
  return differences;
}

std::vector<std::string> keys_allowed_to_change(const Job& job) {
  std::vector<std::string> keys;
  std::istringstream list(job.checkpoint.allow_changed.value_or(""));
  for (std::string key; std::getline(list, key, ',');) {
    std::erase(key, ' ');
    if (!key.empty()) keys.push_back(key);
  }
  return keys;
}

std::string mistake_in_allowed_keys(const Job& job) {
  std::vector<std::string> known;
  for (const auto& [key, value] : values_of(job)) known.push_back(key);
  for (const std::string& key : keys_allowed_to_change(job)) {
    if (std::find(known.begin(), known.end(), key) != known.end()) continue;
    const auto meant = nearest_key(key, known);
    return mistake(fmt::format("checkpoint.allow_changed names {}, which is no key of a job.{}", key,
                               meant ? fmt::format(" Did you mean {}?", *meant) : ""),
                   "Give keys like optimizer.lr, with commas between them.",
                   job.origins.of("checkpoint.allow_changed"));
  }
  return "";
}

}  // namespace conclave
