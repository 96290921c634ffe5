// What the .cu files offer to kernel_table.cpp: kernels on a stream, over plain pointers, so that no .cu file needs
// ATen's headers. Void pointers are to elements in `Element`. Shapes and meanings as in kernels/*.h.
#pragma once

#include <cstdint>

#include "kernels/adamw_step.h"

struct CUstream_st;

namespace conclave::cuda {

using Stream = CUstream_st*;
enum class Element { fp32, bf16 };

// The stream of the calling thread on the device in use.
Stream current_stream();

void swiglu_forward(Stream stream, Element element, void* out, const void* gate_up, const float* weight, int64_t rows,
                    int64_t intermediate);
void swiglu_backward(Stream stream, Element element, void* grad_gate_up, void* activation, float* grad_weight,
                     const void* grad_out, const void* gate_up, const float* weight, int64_t rows,
                     int64_t intermediate);

// Rows that lie `stride` elements apart.
struct Matrix {
  void* data;
  int64_t stride;
};

struct ClampedShape {
  float limit, slope;
};
void clamped_swiglu_forward(Stream stream, Element element, void* out, const void* gate_up, const float* weight,
                            int64_t rows, int64_t intermediate, ClampedShape shape);
void clamped_swiglu_backward(Stream stream, Element element, void* grad_gate_up, void* activation, float* grad_weight,
                             const void* grad_out, const void* gate_up, const float* weight, int64_t rows,
                             int64_t intermediate, ClampedShape shape);

// Biases [biases, columns], of one type with the rows or fp32; `ends` [biases]: where the rows of each end, null with
// one bias. A null scale is 1.
struct BiasShape {
  int64_t rows, columns, biases;
  const int32_t* ends;
  Element bias_element;
  int64_t stride;  // of the rows that a bias is added to
};
void add_bias(Stream stream, Element element, void* y, const void* bias, const float* scale, const BiasShape& shape);
void bias_backward(Stream stream, Element element, float* grad_bias, const void* grad_y, const float* scale,
                   bool accumulate, const BiasShape& shape);
void bias_scale_backward_add(Stream stream, Element element, float* grad_scale, const void* grad_y, const void* bias,
                             const BiasShape& shape);

// A row has `heads` of `hidden` elements, and each is normalized by itself.
struct NormShape {
  int64_t tokens, heads, hidden;
};
void rms_norm_forward(Stream stream, Element element, Matrix y, float* rstd, Matrix x, const void* weight,
                      const NormShape& shape, double eps);
void rms_norm_repeat(Stream stream, Element element, Matrix y, Matrix x, const float* rstd, const void* weight,
                     const NormShape& shape);
// `partial` [norm_blocks(tokens * heads), hidden] (base/cuda_rules.h) is scratch.
void rms_norm_backward(Stream stream, Element element, Matrix grad_x, float* grad_weight, float* partial, Matrix grad_y,
                       Matrix x, const float* rstd, const void* weight, const NormShape& shape, bool add);

struct RotaryShape {
  int64_t rows, heads, head_dim, sequence, half;
  bool interleaved;
};
// position [rows]; null: row % sequence.
void rotary(Stream stream, Element element, Matrix rows, const float* cosine, const float* sine,
            const int32_t* position, const RotaryShape& shape, bool inverse);

// sum [columns] += partial [blocks, columns], block after block.
void add_partial_sums(Stream stream, float* sum, const float* partial, int64_t blocks, int64_t columns);

struct SinkShape {
  int64_t rows, heads, sequence, head_dim;
};
void sink_forward(Stream stream, Element element, void* out, float* logsumexp, const void* sink,
                  const SinkShape& shape);
// `partial` [norm_blocks(rows), heads] is scratch.
void sink_backward(Stream stream, Element element, float* grad_sink, float* partial, const void* grad_out,
                   const void* out, const float* logsumexp, const void* sink, const SinkShape& shape);

struct LatentShape {
  int64_t heads, plain, rotary, value;  // dims of a head
};
void expand_latent(Stream stream, Element element, Matrix qkv, Matrix kv, Matrix rotary, int64_t rows,
                   const LatentShape& shape);
void collect_latent(Stream stream, Element element, Matrix grad_kv, Matrix grad_rotary, Matrix grad_qkv, int64_t rows,
                    const LatentShape& shape);

// loss [tokens]; with `gradient`, logits become it.
void cross_entropy(Stream stream, Element element, void* logits, double* loss, const int64_t* targets, int64_t tokens,
                   int64_t vocabulary, bool gradient, double scale);
// sum [1] of values, in an order that their count fixes.
void sum_of_doubles(Stream stream, double* sum, const double* values, int64_t count);

void adamw(Stream stream, float* parameter, float* exp_avg, float* exp_avg_sq, const float* grad,
           const AdamwFactors& factors, int64_t count);
// partial [sum_of_squares_blocks(count)] sums that sum_of_doubles adds.
int64_t sum_of_squares_blocks(int64_t count);
void sum_of_squares(Stream stream, double* partial, const float* x, int64_t count);

// Rows of `bytes` at a stride, in bytes.
struct Rows {
  char* begin;
  int64_t stride;
  int64_t count;
};
void gather_rows(Stream stream, Rows out, Rows rows, int64_t bytes, const int32_t* index);
void gather_rows(Stream stream, Rows out, Rows rows, int64_t bytes, const int64_t* index);
void pack_rows(Stream stream, Rows messages, Rows rows, int64_t bytes, const int32_t* row_index, const float* weights,
               int64_t weight_count, const int32_t* weight_index);
void unpack_rows(Stream stream, Rows rows, float* weight, Rows messages, int64_t bytes, const int32_t* index);
// `residual` and `weight` may be null; the weight of a message lies behind its row.
void combine(Stream stream, Element element, void* out, float* weight, const void* residual, Rows rows,
             const int32_t* row_of_choice, int64_t tokens, int64_t top_k, int64_t hidden);

// `choice_of_row` has room for all choices; `scratch` [expert_order_scratch(choices, experts)].
int64_t expert_order_scratch(int64_t choices, int64_t experts);
void order_by_expert(Stream stream, int32_t* choice_of_row, int32_t* row_of_choice, int64_t* count, int32_t* scratch,
                     const int32_t* expert_of_choice, int64_t choices, int64_t experts);

struct RouterShape {
  int64_t tokens, experts, top_k;
  bool sigmoid, renormalize;
  float scale;
  int64_t groups, top_groups, best_of_group;
};
// The most experts that a warp's shared memory holds.
int64_t router_experts_limit();
// Chooses experts, or takes those in `expert`. `bias` may be null.
void route(Stream stream, Element element, float* score, float* logsumexp, int32_t* expert, float* weight,
           const void* logits, const float* bias, const RouterShape& shape, bool choose);
void route_backward(Stream stream, Element element, void* grad_logits, const float* score, const float* logsumexp,
                    const int32_t* expert, const float* weight, const float* grad_weight,
                    const float* probability_gradient, float z_coefficient, const RouterShape& shape);
// statistics [2 E + 2]: counts, sums of probabilities, of logsumexp^2, of the highest probabilities.
// `partial` [routing_statistics_blocks(tokens), 2 E + 2] is scratch.
int64_t routing_statistics_blocks(int64_t tokens);
void routing_statistics(Stream stream, double* statistics, double* partial, const float* score, const float* logsumexp,
                        const int32_t* expert, const RouterShape& shape);

// order [tokens]: places of the tokens sorted by token, stably; sorted_token [tokens]: the tokens there.
void embedding_backward(Stream stream, Element element, float* grad_table, const void* grad_out,
                        const int64_t* sorted_token, const int64_t* order, int64_t tokens, int64_t vocabulary,
                        int64_t hidden);

enum class Fp8Format { e4m3, e5m2 };
// value [padded_rows, columns], scale [columns / 128, padded_rows].
void quantize_rows(Stream stream, Element element, Fp8Format format, uint8_t* value, float* scale, const void* x,
                   int64_t rows, int64_t padded_rows, int64_t columns);
// value [columns, padded_rows], scale [padded_rows / 128, columns].
void quantize_columns(Stream stream, Element element, Fp8Format format, uint8_t* value, float* scale, const void* x,
                      int64_t rows, int64_t padded_rows, int64_t columns);
// value [rows, columns] and the scales of its squares, or `transposed` both; rows of scales lie `scale_stride` apart.
void quantize_weight(Stream stream, Element element, uint8_t* value, float* scale, int64_t scale_stride, const void* w,
                     int64_t rows, int64_t columns, bool transposed);

}  // namespace conclave::cuda
