// Counter-based random numbers: the value of element i of stream s is a pure function of (seed, s, i), so that any
// shard of any layout computes the same values alone and in any order. Philox4x32-10 (Salmon et al., "Parallel Random
// Numbers: As Easy as 1, 2, 3", SC 2011), as in ATen.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace conclave {

// Names a stream of random numbers: a parameter's name, "data", ... Different names give unrelated streams.
uint64_t random_stream(std::string_view name);

// Fills out[j] with element (begin + j) of the standard normal stream, times `std`, plus `mean`. Box-Muller on 24-bit
// uniforms. ATen's threads share the work.
void fill_normal(std::span<float> out, uint64_t seed, uint64_t stream, uint64_t begin, float mean, float std);

// Fills out[j] with element (begin + j) of the uniform stream over (low, high), 24 bits of it random.
void fill_uniform(std::span<float> out, uint64_t seed, uint64_t stream, uint64_t begin, float low, float high);

// Element `index` of the stream of uniformly distributed 64-bit integers.
uint64_t random_u64(uint64_t seed, uint64_t stream, uint64_t index);

}  // namespace conclave
