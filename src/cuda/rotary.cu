// Pairs of a head's dims turn together, in place. A block has a row.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

// The elements of `width` pairs: from two places, or by turns.
template <bool interleaved, int width, class T>
__device__ void load_pairs(float (&x1)[width], float (&x2)[width], const T* first, const T* second) {
  if constexpr (!interleaved) {
    load(x1, first);
    load(x2, second);
  } else if constexpr (width == 1) {
    x1[0] = widened(first[0]);
    x2[0] = widened(first[1]);
  } else {
    float x[2 * width];
    load(x, first);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      x1[j] = x[2 * j];
      x2[j] = x[2 * j + 1];
    }
  }
}

template <bool interleaved, int width, class T>
__device__ void store_pairs(T* first, T* second, const float (&y1)[width], const float (&y2)[width]) {
  if constexpr (!interleaved) {
    store(first, y1);
    store(second, y2);
  } else if constexpr (width == 1) {
    first[0] = narrowed<T>(y1[0]);
    first[1] = narrowed<T>(y2[0]);
  } else {
    float y[2 * width];
#pragma unroll
    for (int j = 0; j < width; ++j) {
      y[2 * j] = y1[j];
      y[2 * j + 1] = y2[j];
    }
    store(first, y);
  }
}

template <class T, int width, bool interleaved>
__global__ void rotary_kernel(RowsOf<T> rows, const float* cosine, const float* sine, const int32_t* positions,
                              RotaryShape shape, float direction) {
  const int64_t row = blockIdx.x;
  const int64_t position = positions != nullptr ? positions[row] : row % shape.sequence;
  const int packs = static_cast<int>(shape.half / width);
  for (int64_t i = threadIdx.x; i < shape.heads * packs; i += blockDim.x) {
    const int64_t pair = i % packs * width;
    T* head = rows.row(row) + i / packs * shape.head_dim;
    T* first = head + (interleaved ? 2 * pair : pair);
    T* second = head + shape.half + pair;
    float x1[width], x2[width], y1[width], y2[width], c[width], s[width];
    load_pairs<interleaved>(x1, x2, first, second);
    load(c, cosine + position * shape.half + pair);
    load(s, sine + position * shape.half + pair);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      y1[j] = x1[j] * c[j] - x2[j] * (direction * s[j]);
      y2[j] = x2[j] * c[j] + x1[j] * (direction * s[j]);
    }
    store_pairs<interleaved>(first, second, y1, y2);
  }
}

}  // namespace

void rotary(Stream stream, Element element, Matrix rows, const float* cosine, const float* sine,
            const int32_t* position, const RotaryShape& shape, bool inverse) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    // Both halves of a head, every head and every row must begin at a whole pack.
    with_width<T>({shape.half, shape.head_dim, rows.stride}, {rows.data, cosine, sine}, [&](auto width) {
      const Grid grid{.blocks = shape.rows, .threads = threads_for(shape.heads * shape.half / width)};
      const auto kernel = shape.interleaved ? rotary_kernel<T, width, true> : rotary_kernel<T, width, false>;
      launch(stream, grid, kernel, RowsOf<T>(rows), cosine, sine, position, shape, inverse ? -1.0f : 1.0f);
    });
  });
}

}  // namespace conclave::cuda
