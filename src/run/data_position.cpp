#include "run/data_position.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>

#include "base/log.h"

namespace conclave {
namespace {

int64_t sequence_length_of(const CheckpointState& state, int64_t otherwise) {
  const auto found = state.job.find("data.sequence_length");
  return found == state.job.end() ? otherwise : std::strtoll(found->second.c_str(), nullptr, 10);
}

}  // namespace

DataPosition position_in_data(const CheckpointState& state, const SampleStream& stream, const std::string& fingerprint,
                              uint64_t seed) {
  if (state.samples == 0) return {};
  if (state.data_fingerprint != fingerprint)
    return {0, "data.train is other data than before: it is read from its beginning"};

  const int64_t length = stream.sequence_length();
  const int64_t length_before = sequence_length_of(state, length);
  const bool other_length = length_before != length;
  if (!other_length && state.seed == seed) return {state.samples, ""};

  const int64_t samples_before = std::max<int64_t>((stream.set().tokens() - 1) / length_before, 1);
  const int64_t epoch = state.samples / samples_before;
  const int64_t within = state.samples % samples_before;  // samples of the epoch that were read
  const int64_t sample = std::min((within * length_before + length - 1) / length, stream.samples_per_epoch());
  DataPosition position{epoch * stream.samples_per_epoch() + sample, ""};
  if (within > 0)
    position.said = fmt::format(
        "{} gives epoch {} another order, and {:.1f} % of it is read: of the rest, about as large a share is read a "
        "second time, and as much is not read in this epoch. Every later epoch reads each sample once.",
        other_length ? "data.sequence_length" : "run.seed", epoch + 1,
        100.0 * static_cast<double>(within) / static_cast<double>(samples_before));
  return position;
}

void log_reading(const SampleStream& stream, int64_t steps, int64_t sequences_per_step) {
  const int64_t in_epoch = stream.samples_per_epoch();
  const int64_t unread = stream.set().tokens() - 1 - in_epoch * stream.sequence_length();
  const std::string set = stream.set().prefix().string();
  spdlog::info("data.train {}: {} tokens, {} samples an epoch{}; {} steps take {} samples, {:.2f} epochs", set,
               stream.set().tokens(), in_epoch,
               unread > 0 ? fmt::format(" (tokens at the end that fill none and are not read: {})", unread) : "", steps,
               steps * sequences_per_step,
               static_cast<double>(steps * sequences_per_step) / static_cast<double>(in_epoch));
  if (sequences_per_step > in_epoch)
    spdlog::warn("a step takes {} samples, but data.train {} has {}: every step reads some of them more than once.",
                 sequences_per_step, set, in_epoch);
}

}  // namespace conclave
