#include "base/random.h"

#include <ATen/Parallel.h>
#include <ATen/core/PhiloxRNGEngine.h>
#include <xxhash.h>

#include <array>
#include <cmath>
#include <numbers>

namespace conclave {
namespace {

// Four 32-bit words of block `block`: elements [4 * block, 4 * block + 4) of the stream.
std::array<uint32_t, 4> philox_block(uint64_t seed, uint64_t stream, uint64_t block) {
  at::philox_engine engine(seed, stream, block);
  return {engine(), engine(), engine(), engine()};
}

// Uniform in (0, 1), never 0, so that its logarithm is finite.
float open_uniform(uint32_t word) {
  return (static_cast<float>(word >> 8) + 0.5f) * 0x1p-24f;
}

// out[j] = element (begin + j), of which `values_of(block)` has four. ATen's threads share the work; who computes an
// element makes no difference.
template <class F>
void fill_blocks(std::span<float> out, uint64_t begin, const F& values_of) {
  constexpr int64_t elements_worth_a_thread = int64_t{1} << 15;
  at::parallel_for(0, static_cast<int64_t>(out.size()), elements_worth_a_thread, [&](int64_t first, int64_t end) {
    for (int64_t j = first; j < end;) {
      const uint64_t index = begin + static_cast<uint64_t>(j);
      const std::array<float, 4> value = values_of(index / 4);
      for (uint64_t lane = index % 4; lane < 4 && j < end; ++lane, ++j) out[static_cast<size_t>(j)] = value[lane];
    }
  });
}

}  // namespace

uint64_t random_stream(std::string_view name) {
  return XXH3_64bits(name.data(), name.size());
}

void fill_normal(std::span<float> out, uint64_t seed, uint64_t stream, uint64_t begin, float mean, float std) {
  fill_blocks(out, begin, [=](uint64_t block) {
    const auto words = philox_block(seed, stream, block);
    std::array<float, 4> value;
    for (int pair = 0; pair < 2; ++pair) {
      const float radius = std::sqrt(-2.0f * std::log(open_uniform(words[2 * pair])));
      const float angle = 2.0f * std::numbers::pi_v<float> * open_uniform(words[2 * pair + 1]);
      value[2 * pair] = mean + std * (radius * std::cos(angle));
      value[2 * pair + 1] = mean + std * (radius * std::sin(angle));
    }
    return value;
  });
}

void fill_uniform(std::span<float> out, uint64_t seed, uint64_t stream, uint64_t begin, float low, float high) {
  fill_blocks(out, begin, [=](uint64_t block) {
    std::array<float, 4> value;
    const auto words = philox_block(seed, stream, block);
    for (int lane = 0; lane < 4; ++lane) value[lane] = low + (high - low) * open_uniform(words[lane]);
    return value;
  });
}

uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto words = philox_block(seed, stream, index / 2);
  const int half = static_cast<int>(index % 2) * 2;
  return (static_cast<uint64_t>(words[half]) << 32) | words[half + 1];
}

}  // namespace conclave
