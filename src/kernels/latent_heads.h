// Keys and values of latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) as attention reads them. A row's
// latent gives each head a key without position and a value; the dims of the key that turn are the same for all heads.
#pragma once

#include <ATen/core/Tensor.h>

namespace conclave {

struct LatentHeads {
  int64_t count = 0;
  int64_t plain_dim = 0;   // of queries and keys: dims without position, which come first
  int64_t rotary_dim = 0;  // those that turn
  int64_t value_dim = 0;

  int64_t key_dim() const { return plain_dim + rotary_dim; }
  int64_t latent_columns() const { return count * (plain_dim + value_dim); }      // key and value head by head
  int64_t packed_columns() const { return count * (2 * key_dim() + value_dim); }  // AttentionShape's: q, k, v
};

// Keys and values of qkv [T, packed_columns], whose queries stay as they are: of kv [T, latent_columns], and of the
// turned dims rotary [T, rotary_dim]. Rows may lie any distance apart; all of one dtype, fp32 or bf16.
void expand_latent(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR, const LatentHeads& heads);

// The gradient's way back: that of rotary is the sum over heads, in fp32 and rounded once.
void collect_latent(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                    const LatentHeads& heads);

namespace reference {
void expand_latent(at::Tensor qkv_TM, const at::Tensor& kv_TX, const at::Tensor& rotary_TR, const LatentHeads& heads);
void collect_latent(at::Tensor grad_kv_TX, at::Tensor grad_rotary_TR, const at::Tensor& grad_qkv_TM,
                    const LatentHeads& heads);
}  // namespace reference

}  // namespace conclave
