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

DataPosition position_in_set(const CheckpointState& state, const SampleStream& stream, int64_t length_before,
                             const char* changed) {
  const int64_t length = stream.sequence_length();
  const int64_t samples_before = std::max<int64_t>((stream.set().tokens() - 1) / length_before, 1);
  const int64_t epoch = state.samples / samples_before;
  const int64_t within = state.samples % samples_before;  // samples of the epoch that were read
  const int64_t sample = std::min((within * length_before + length - 1) / length, stream.samples_per_epoch());
  DataPosition position{epoch * stream.samples_per_epoch() + sample, ""};
  if (within > 0)
    position.said = fmt::format(
        "{} gives epoch {} another order, and {:.1f} % of it is read: of the rest, about as large a share is read a "
        "second time, and as much is not read in this epoch. Every later epoch reads each sample once.",
        changed, epoch + 1, 100.0 * static_cast<double>(within) / static_cast<double>(samples_before));
  return position;
}

// "data.train data/code", "source code of data.train (data/code), 70.0 % of the samples,".
std::string name_in_log(const Blend& blend, const BlendSource& source, int64_t weights) {
  const std::string prefix = source.stream->set().prefix().string();
  if (blend.is_single()) return fmt::format("data.train {}", prefix);
  return fmt::format("data.train {} ({}), {:.4g} % of the samples", source.name, prefix,
                     100.0 * static_cast<double>(source.weight) / static_cast<double>(weights));
}

}  // namespace

DataPosition position_in_data(const CheckpointState& state, const Blend& blend, const std::string& fingerprint,
                              uint64_t seed) {
  if (state.samples == 0) return {};
  if (state.data_fingerprint != fingerprint)
    return {0, "data.train is other data than before: it is read from its beginning"};

  const int64_t length = blend.sequence_length();
  const int64_t length_before = sequence_length_of(state, length);
  if (length_before == length && state.seed == seed) return {state.samples, ""};
  const char* changed = length_before != length ? "data.sequence_length" : "run.seed";
  if (blend.is_single()) return position_in_set(state, blend.stream(0), length_before, changed);
  return {(state.samples * length_before + length - 1) / length,
          fmt::format("{} gives every source another order: in the epochs that have begun, some of it is read a second "
                      "time, and as much is not read. Every later epoch reads each sample once.",
                      changed)};
}

void log_reading(const Blend& blend, int64_t first, int64_t steps, int64_t sequences_per_step) {
  const int64_t samples = steps * sequences_per_step;
  const std::vector<int64_t> before = blend.samples_before(first), behind = blend.samples_before(first + samples);
  int64_t weights = 0;
  for (const BlendSource& source : blend.sources()) weights += source.weight;
  for (size_t s = 0; s < before.size(); ++s) {
    const BlendSource& source = blend.sources()[s];
    const SampleStream& stream = *source.stream;
    const int64_t in_epoch = stream.samples_per_epoch();
    const int64_t unread = stream.set().tokens() - 1 - in_epoch * stream.sequence_length();
    const int64_t taken = behind[s] - before[s];
    spdlog::info("{}: {} tokens{}, {} samples an epoch{}; {} steps take {} samples, {:.2f} epochs",
                 name_in_log(blend, source, weights), stream.set().tokens(),
                 stream.has_mask() ? fmt::format(" ({} of them trained on)", stream.set().mask()->trained()) : "",
                 in_epoch,
                 unread > 0 ? fmt::format(" (tokens at the end that fill none and are not read: {})", unread) : "",
                 steps, taken, static_cast<double>(taken) / static_cast<double>(in_epoch));
    const int64_t in_step = (taken + steps - 1) / std::max<int64_t>(steps, 1);
    if (in_step > in_epoch)
      spdlog::warn("a step takes {} samples, but {} has {}: every step reads some of them more than once.", in_step,
                   name_in_log(blend, source, weights), in_epoch);
  }
}

}  // namespace conclave
