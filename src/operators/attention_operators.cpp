// torch.ops.conclave.attention and rotary: the engine's causal attention and rotary embedding with their gradients,
// over heads as Transformers hands them to its attention functions.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "base/error.h"
#include "kernels/attention.h"
#include "kernels/check.h"
#include "kernels/rotary.h"
#include "operators/plugin_kernels.h"

namespace conclave {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Heads [B,N,S,D] as rows of a packed projection, [B*S, N*D].
at::Tensor rows_of(const at::Tensor& heads_BNSD) {
  return heads_BNSD.transpose(1, 2).reshape({heads_BNSD.size(0) * heads_BNSD.size(2), -1});
}

// Columns of a packed projection as heads [B,N,S,D].
at::Tensor heads_of(const at::Tensor& rows_TM, int64_t first, int64_t batch, int64_t heads, int64_t dim) {
  return rows_TM.narrow(1, first, heads * dim).view({batch, -1, heads, dim}).transpose(1, 2);
}

AttentionShape shape_of(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double scale,
                        std::optional<int64_t> window) {
  for (const at::Tensor& heads : {query, key, value})
    check_invariant(heads.dim() == 4 && heads.size(0) == query.size(0) && heads.size(2) == query.size(2) &&
                        heads.scalar_type() == query.scalar_type(),
                    "attention: heads are [B,N,S,D] of one batch, sequence and dtype, not {} dims", heads.dim());
  check_invariant(key.size(1) == value.size(1) && key.size(3) == query.size(3), "attention: {} keys of {}, {} values",
                  key.size(1), key.size(3), value.size(1));
  return {.batch = query.size(0),
          .sequence = query.size(2),
          .heads = query.size(1),
          .kv_heads = key.size(1),
          .head_dim = query.size(3),
          .window = window,
          .scale = scale,
          .value_head_dim = value.size(3)};
}

class Attention : public torch::autograd::Function<Attention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& query, const at::Tensor& key,
                            const at::Tensor& value, double scale, std::optional<int64_t> window) {
    const OperatorDevice device(query);
    const AttentionShape shape = shape_of(query, key, value, scale, window);
    const at::Tensor qkv_TM = at::cat({rows_of(query), rows_of(key), rows_of(value)}, 1);
    const at::Tensor out = at::empty({shape.batch, shape.sequence, shape.heads, shape.value_dim()}, qkv_TM.options());
    const at::Tensor logsumexp_BNS =
        at::empty({shape.batch, shape.heads, shape.sequence}, qkv_TM.options().dtype(wide_dtype(qkv_TM.scalar_type())));
    attention_forward(out.view({qkv_TM.size(0), shape.out_columns()}), logsumexp_BNS, qkv_TM, shape);
    context->save_for_backward({qkv_TM, out, logsumexp_BNS});
    context->saved_data["kv_heads"] = shape.kv_heads;
    context->saved_data["head_dim"] = shape.head_dim;
    context->saved_data["scale"] = scale;
    context->saved_data["window"] = window;
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grad) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &qkv_TM = saved[0], &out = saved[1], &logsumexp_BNS = saved[2];
    const OperatorDevice device(qkv_TM);
    const AttentionShape shape{.batch = out.size(0),
                               .sequence = out.size(1),
                               .heads = out.size(2),
                               .kv_heads = context->saved_data["kv_heads"].toInt(),
                               .head_dim = context->saved_data["head_dim"].toInt(),
                               .window = context->saved_data["window"].toOptional<int64_t>(),
                               .scale = context->saved_data["scale"].toDouble(),
                               .value_head_dim = out.size(3)};
    const int64_t tokens = qkv_TM.size(0), columns = shape.out_columns();
    const at::Tensor grad_qkv_TM = at::empty_like(qkv_TM);
    attention_backward(grad_qkv_TM, grad[0].contiguous().view({tokens, columns}), out.view({tokens, columns}),
                       logsumexp_BNS, qkv_TM, shape);
    const int64_t keys = shape.heads * shape.head_dim, values = keys + shape.kv_heads * shape.head_dim;
    return {heads_of(grad_qkv_TM, 0, shape.batch, shape.heads, shape.head_dim),
            heads_of(grad_qkv_TM, keys, shape.batch, shape.kv_heads, shape.head_dim),
            heads_of(grad_qkv_TM, values, shape.batch, shape.kv_heads, shape.value_dim()),
            {},
            {}};
  }
};

// A copy of heads [B,N,S,D] as [B,S,N,D], turned. The table has a row for each token, or for each of a sequence.
at::Tensor turned(const at::Tensor& heads, const at::Tensor& cos_SD, const at::Tensor& sin_SD, bool inverse) {
  const OperatorDevice device(heads);
  const at::Tensor result = heads.transpose(1, 2).clone(at::MemoryFormat::Contiguous);
  const at::Tensor rows_TN = result.view({result.size(0) * result.size(1), result.size(2) * result.size(3)});
  const RotaryTable table{.cos_SD = cos_SD, .sin_SD = sin_SD};
  if (rows_TN.numel() == 0) return result;
  (inverse ? rotary_backward_ : rotary_forward_)(rows_TN, heads.size(1), heads.size(3), table);
  return result;
}

class Rotary : public torch::autograd::Function<Rotary> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& heads, const at::Tensor& cos_SD,
                            const at::Tensor& sin_SD) {
    context->save_for_backward({cos_SD, sin_SD});
    return turned(heads, cos_SD, sin_SD, /*inverse=*/false);
  }

  static variable_list backward(AutogradContext* context, variable_list grad) {
    const variable_list saved = context->get_saved_variables();
    return {turned(grad[0].transpose(1, 2), saved[0], saved[1], /*inverse=*/true).transpose(1, 2), {}, {}};
  }
};

// query [B,N,S,D], key and value of kv heads -> [B,S,N,V], causal.
at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double scale,
                     std::optional<int64_t> window) {
  return Attention::apply(query, key, value, scale, window);
}

// heads [B,N,S,D], cos and sin [S or B*S, half of the dims that turn] fp32 -> [B,S,N,D].
at::Tensor rotary(const at::Tensor& heads, const at::Tensor& cos, const at::Tensor& sin) {
  return Rotary::apply(heads, cos, sin);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(conclave, library) {
  library.def("attention(Tensor query, Tensor key, Tensor value, float scale, int? window) -> Tensor");
  library.def("rotary(Tensor heads, Tensor cos, Tensor sin) -> Tensor");
}

TORCH_LIBRARY_IMPL(conclave, CompositeImplicitAutograd, library) {
  library.impl("attention", attention);
  library.impl("rotary", rotary);
}

}  // namespace conclave
