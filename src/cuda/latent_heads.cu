// Keys and values of latent attention, from where products write them to where attention reads them and back. A block
// has a row.
#include "cuda/device_code.h"

namespace conclave::cuda {

namespace {

// Where a row's parts lie.
template <class T>
struct LatentRow {
  __device__ LatentRow(const RowsOf<T>& qkv, const RowsOf<T>& kv, const RowsOf<T>& rotary_rows,
                       const LatentShape& shape)
      : key_dim(shape.plain + shape.rotary),
        latent_dim(shape.plain + shape.value),
        key(qkv.row(blockIdx.x) + shape.heads * key_dim),
        value(key + shape.heads * key_dim),
        latent(kv.row(blockIdx.x)),
        rotary(rotary_rows.row(blockIdx.x)) {}

  int64_t key_dim, latent_dim;
  T *key, *value, *latent, *rotary;
};

// to(head, dim) = from(head, dim) for all dims of all heads.
template <int width, class To, class From>
__device__ void copy_heads(int64_t heads, int64_t dims, const To& to, const From& from) {
  for (int64_t i = threadIdx.x * width; i < heads * dims; i += blockDim.x * width) {
    float value[width];
    load(value, from(i / dims, i % dims));
    store(to(i / dims, i % dims), value);
  }
}

template <class T, int width>
__global__ void expand_latent_kernel(RowsOf<T> qkv, RowsOf<T> kv, RowsOf<T> rotary, LatentShape shape) {
  const LatentRow<T> row(qkv, kv, rotary, shape);
  copy_heads<width>(
      shape.heads, shape.plain, [&](int64_t head, int64_t dim) { return row.key + head * row.key_dim + dim; },
      [&](int64_t head, int64_t dim) { return row.latent + head * row.latent_dim + dim; });
  copy_heads<width>(
      shape.heads, shape.rotary,
      [&](int64_t head, int64_t dim) { return row.key + head * row.key_dim + shape.plain + dim; },
      [&](int64_t, int64_t dim) { return row.rotary + dim; });
  copy_heads<width>(
      shape.heads, shape.value, [&](int64_t head, int64_t dim) { return row.value + head * shape.value + dim; },
      [&](int64_t head, int64_t dim) { return row.latent + head * row.latent_dim + shape.plain + dim; });
}

template <class T, int width>
__global__ void collect_latent_kernel(RowsOf<T> kv, RowsOf<T> rotary, RowsOf<T> qkv, LatentShape shape) {
  const LatentRow<T> row(qkv, kv, rotary, shape);
  copy_heads<width>(
      shape.heads, shape.plain, [&](int64_t head, int64_t dim) { return row.latent + head * row.latent_dim + dim; },
      [&](int64_t head, int64_t dim) { return row.key + head * row.key_dim + dim; });
  copy_heads<width>(
      shape.heads, shape.value,
      [&](int64_t head, int64_t dim) { return row.latent + head * row.latent_dim + shape.plain + dim; },
      [&](int64_t head, int64_t dim) { return row.value + head * shape.value + dim; });
  for (int64_t dim = threadIdx.x * width; dim < shape.rotary; dim += blockDim.x * width) {
    float sum[width] = {}, value[width];
    for (int64_t head = 0; head < shape.heads; ++head) {
      load(value, row.key + head * row.key_dim + shape.plain + dim);
#pragma unroll
      for (int i = 0; i < width; ++i) sum[i] += value[i];
    }
    store(row.rotary + dim, sum);
  }
}

// f(T{}, width, threads)
template <class F>
void with_latent(Element element, Matrix qkv, Matrix kv, Matrix rotary, const LatentShape& shape, const F& f) {
  with_elements(element, [&](auto of) {
    using T = decltype(of);
    with_width<T>({shape.plain, shape.rotary, shape.value, qkv.stride, kv.stride, rotary.stride},
                  {qkv.data, kv.data, rotary.data}, [&](auto width) {
                    const int64_t widest_part = shape.plain > shape.value ? shape.plain : shape.value;
                    f(of, width, threads_for(shape.heads * widest_part / width));
                  });
  });
}

}  // namespace

void expand_latent(Stream stream, Element element, Matrix qkv, Matrix kv, Matrix rotary, int64_t rows,
                   const LatentShape& shape) {
  with_latent(element, qkv, kv, rotary, shape, [&](auto of, auto width, int threads) {
    using T = decltype(of);
    launch(stream, {.blocks = rows, .threads = threads}, expand_latent_kernel<T, width>, RowsOf<T>(qkv), RowsOf<T>(kv),
           RowsOf<T>(rotary), shape);
  });
}

void collect_latent(Stream stream, Element element, Matrix grad_kv, Matrix grad_rotary, Matrix grad_qkv, int64_t rows,
                    const LatentShape& shape) {
  with_latent(element, grad_qkv, grad_kv, grad_rotary, shape, [&](auto of, auto width, int threads) {
    using T = decltype(of);
    launch(stream, {.blocks = rows, .threads = threads}, collect_latent_kernel<T, width>, RowsOf<T>(grad_kv),
           RowsOf<T>(grad_rotary), RowsOf<T>(grad_qkv), shape);
  });
}

}  // namespace conclave::cuda
