#include "data/document_length.h"

#include <cmath>

namespace conclave {

int64_t document_length_of_tokens(const Blend& blend) {
  constexpr int64_t samples = 1024;
  const int64_t length = blend.sequence_length();
  if (blend.stream(0).packing() == Packing::joined) return length;
  double squares = 0;
  for (int64_t s = 0; s < samples; ++s) {
    const Blend::Place place = blend.at(s);
    int64_t begin = 0;
    for (const int64_t end : blend.stream(place.source).document_ends(place.sample)) {
      squares += static_cast<double>((end - begin) * (end - begin));
      begin = end;
    }
  }
  return std::llround(squares / static_cast<double>(samples * length));
}

}  // namespace conclave
