#include "config/data_section.h"

#include <fmt/format.h>

#include "config/fields.h"
#include "config/key_rules.h"

namespace conclave {

void describe(DataConfig& data, Fields& to) {
  to.section("data", "token files and batch sizes");
  to.field("data.train", data.train, RequiredPath{"training", false},
           "prefix of a .bin/.idx pair, or a list of {path, weight, name}: a blend of several");
  to.field("data.validation", data.validation, Anything{},
           "prefix of a .bin/.idx pair, or several by name: {code: data/code, chat: data/chat}; null: none");
  to.field("data.sequence_length", data.sequence_length, NumberRange{1, 1 << 24}, "tokens of one sample");
  to.field("data.micro_batch_size", data.micro_batch_size, size_of_at_least(1), "sequences per rank and micro-step");
  to.field("data.global_batch_size", data.global_batch_size, size_of_at_least(1),
           "sequences per step over all ranks; null: micro_batch_size x world size");
  to.field("data.document_mask", data.document_mask, Anything{},
           "documents of a sample do not see each other: attention and positions begin anew with each");
}

std::string mistake_in_batch_size(const DataConfig& data, int world_size, const std::string& place) {
  if (!data.global_batch_size) return "";
  const int64_t wanted = *data.global_batch_size;
  const int64_t at_once = data.micro_batch_size * world_size;
  if (wanted % at_once == 0) return "";
  const int64_t below = wanted / at_once * at_once;
  const std::string nearest = below > 0 ? fmt::format("{} or {}", below, below + at_once) : fmt::format("{}", at_once);
  const std::string ranks = world_size == 1 ? "each rank" : fmt::format("{} ranks", world_size);
  return mistake(
      fmt::format(
          "data.global_batch_size is {}, but a micro-step of {} takes {} sequences (data.micro_batch_size is {}) and "
          "must fit a whole number of times.",
          wanted, ranks, at_once, data.micro_batch_size),
      fmt::format("Use {}.", nearest), place);
}

void check(const DataConfig& data, KeyRules& rules) {
  if (!rules.know({"data.global_batch_size", "data.micro_batch_size"})) return;
  const std::string mistake = mistake_in_batch_size(data, 1, rules.place_of("data.global_batch_size"));
  if (!mistake.empty()) rules.mistakes.push_back(mistake);
}

}  // namespace conclave
