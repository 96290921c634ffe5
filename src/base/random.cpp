#include "base/random.h"

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

}  // namespace

uint64_t random_stream(std::string_view name) {
  return XXH3_64bits(name.data(), name.size());
}

void fill_normal(std::span<float> out, uint64_t seed, uint64_t stream, uint64_t begin, float mean, float std) {
  uint64_t index = begin;
  for (size_t j = 0; j < out.size();) {
    const auto words = philox_block(seed, stream, index / 4);
    std::array<float, 4> normal;
    for (int pair = 0; pair < 2; ++pair) {
      const float radius = std::sqrt(-2.0f * std::log(open_uniform(words[2 * pair])));
      const float angle = 2.0f * std::numbers::pi_v<float> * open_uniform(words[2 * pair + 1]);
      normal[2 * pair] = radius * std::cos(angle);
      normal[2 * pair + 1] = radius * std::sin(angle);
    }
    for (uint64_t lane = index % 4; lane < 4 && j < out.size(); ++lane, ++index, ++j)
      out[j] = mean + std * normal[lane];
  }
}

void fill_uniform(std::span<float> out, uint64_t seed, uint64_t stream, uint64_t begin, float low, float high) {
  uint64_t index = begin;
  for (size_t j = 0; j < out.size();) {
    const auto words = philox_block(seed, stream, index / 4);
    for (uint64_t lane = index % 4; lane < 4 && j < out.size(); ++lane, ++index, ++j)
      out[j] = low + (high - low) * open_uniform(words[lane]);
  }
}

uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto words = philox_block(seed, stream, index / 2);
  const int half = static_cast<int>(index % 2) * 2;
  return (static_cast<uint64_t>(words[half]) << 32) | words[half + 1];
}

}  // namespace conclave
