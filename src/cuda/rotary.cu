// Dims j and j + D/2 of a head turn together, in place. A block has a row.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

template <class T, int width>
__global__ void rotary_kernel(T* qkv, const float* cosine, const float* sine, int64_t row_elements, int64_t heads,
                              int64_t sequence, int64_t half, float direction) {
  const int64_t row = blockIdx.x, position = row % sequence;
  const int packs = static_cast<int>(half / width);
  for (int64_t i = threadIdx.x; i < heads * packs; i += blockDim.x) {
    const int64_t head = i / packs, dim = i % packs * width;
    T* first = qkv + row * row_elements + head * 2 * half + dim;
    float x1[width], x2[width], y1[width], y2[width], c[width], s[width];
    load(x1, first);
    load(x2, first + half);
    load(c, cosine + position * half + dim);
    load(s, sine + position * half + dim);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      y1[j] = x1[j] * c[j] - x2[j] * (direction * s[j]);
      y2[j] = x2[j] * c[j] + x1[j] * (direction * s[j]);
    }
    store(first, y1);
    store(first + half, y2);
  }
}

}  // namespace

void rotary(Stream stream, Element element, void* qkv, const float* cosine, const float* sine, int64_t rows,
            int64_t row_elements, int64_t heads, int64_t sequence, int64_t half, bool inverse) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    // Both halves of a head and every row must begin at a whole pack.
    const int64_t common = row_elements % (16 / static_cast<int64_t>(sizeof(T))) == 0 ? half : 1;
    with_width<T>(common, {qkv, cosine, sine}, [&](auto width) {
      launch(stream, {.blocks = rows, .threads = threads_for(heads * half / width)}, rotary_kernel<T, width>,
             static_cast<T*>(qkv), cosine, sine, row_elements, heads, sequence, half, inverse ? -1.0f : 1.0f);
    });
  });
}

}  // namespace conclave::cuda
