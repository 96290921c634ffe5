#include "kernels/latent_heads.h"

#include <ATen/ATen.h>

#include "base/step_clock.h"
#include "kernels/check.h"
#include "kernels/kernels.h"

namespace conclave {

namespace {

void check_latent(const char* op, const at::Tensor& qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR,
                  const LatentHeads& heads) {
  check_invariant(heads.count > 0 && heads.plain_dim >= 0 && heads.rotary_dim >= 0 && heads.value_dim > 0,
                  "{}: {} heads of {} + {} and {}", op, heads.count, heads.plain_dim, heads.rotary_dim,
                  heads.value_dim);
  check_rows(op, "qkv", qkv_TM);
  const int64_t tokens = qkv_TM.size(0);
  const at::ScalarType dtype = qkv_TM.scalar_type();
  check_rows(op, "qkv", qkv_TM, tokens, heads.packed_columns(), dtype);
  check_rows(op, "kv", kv_TX, tokens, heads.latent_columns(), dtype);
  check_rows(op, "rotary", rotary_TR, tokens, heads.rotary_dim, dtype);
}

// Views [T, heads, dims] of the parts.
struct Parts {
  Parts(const at::Tensor& qkv_TM, const at::Tensor& kv_TX, const LatentHeads& heads) {
    const int64_t n = heads.count, keys = n * heads.key_dim();
    const at::Tensor key = qkv_TM.narrow(1, keys, keys).unflatten(1, {n, heads.key_dim()});
    const at::Tensor kv = kv_TX.unflatten(1, {n, heads.plain_dim + heads.value_dim});
    plain = key.narrow(2, 0, heads.plain_dim);
    rotary = key.narrow(2, heads.plain_dim, heads.rotary_dim);
    value = qkv_TM.narrow(1, 2 * keys, n * heads.value_dim).unflatten(1, {n, heads.value_dim});
    latent_plain = kv.narrow(2, 0, heads.plain_dim);
    latent_value = kv.narrow(2, heads.plain_dim, heads.value_dim);
  }
  at::Tensor plain, rotary, value, latent_plain, latent_value;
};

}  // namespace

void expand_latent(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR, const LatentHeads& heads) {
  const KernelScope timed(Phase::kernels);
  check_latent("expand_latent", qkv_TM, kv_TX, rotary_TR, heads);
  kernels_of(qkv_TM).expand_latent(qkv_TM, kv_TX, rotary_TR, heads);
}

void collect_latent(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                    const LatentHeads& heads) {
  const KernelScope timed(Phase::kernels);
  check_latent("collect_latent", grad_qkv_TM, grad_kv_TX, grad_rotary_TR, heads);
  kernels_of(grad_qkv_TM).collect_latent(grad_kv_TX, grad_rotary_TR, grad_qkv_TM, heads);
}

void reference::expand_latent(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR,
                              const LatentHeads& heads) {
  const Parts of(qkv_TM, kv_TX, heads);
  of.plain.copy_(of.latent_plain);
  of.rotary.copy_(rotary_TR.unsqueeze(1).expand_as(of.rotary));
  of.value.copy_(of.latent_value);
}

void reference::collect_latent(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                               const LatentHeads& heads) {
  const Parts of(grad_qkv_TM, grad_kv_TX, heads);
  of.latent_plain.copy_(of.plain);
  of.latent_value.copy_(of.value);
  grad_rotary_TR.copy_(of.rotary.to(wide_dtype(grad_qkv_TM.scalar_type())).sum(1));
}

}  // namespace conclave
