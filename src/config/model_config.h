// A model as blocks, whatever family it is of: what a decoder computes, layer by layer. Families (src/families) make it
// of a config.json; the blocks (src/model) compute it; parameters and arithmetic follow from it.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

namespace conclave {

// Rotary position embedding, the same for all layers. The numbers of scaling are those of Hugging Face's
// rope_parameters; what the kind of scaling does not use keeps its default.
struct RotaryConfig {
  enum class Scaling { none, linear, llama3, yarn };

  double theta = 10000;
  int64_t dims = 0;          // elements of a head that turn: its first; even
  bool interleaved = false;  // pairs are neighbours; otherwise element j and element j + dims / 2
  Scaling scaling = Scaling::none;
  double factor = 1;                             // linear, llama3, yarn
  int64_t original_max_position_embeddings = 0;  // llama3, yarn
  double low_freq_factor = 1;                    // llama3
  double high_freq_factor = 4;                   // llama3
  double beta_fast = 32;                         // yarn
  double beta_slow = 1;                          // yarn
  bool truncate = true;                          // yarn: bounds of the ramp are whole numbers
  std::optional<double> attention_factor;        // yarn: of cosine and sine
  std::optional<double> mscale;                  // yarn
  std::optional<double> mscale_all_dim;          // yarn

  // What cosines and sines are multiplied by.
  double cosine_factor() const;
  bool operator==(const RotaryConfig&) const = default;
};

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values from one short vector.
struct LatentAttentionConfig {
  int64_t q_lora_rank = 0;  // 0: queries come from the hidden state itself
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  double norm_eps = 1e-6;  // of the norms of the short vectors

  bool operator==(const LatentAttentionConfig&) const = default;
};

struct AttentionConfig {
  // Root mean square normalization of queries and keys, before they are turned.
  enum class QkNorm { none, per_head, whole_projection };

  int64_t heads = 0;
  int64_t key_value_heads = 0;
  int64_t head_dim = 0;  // of queries and keys
  int64_t value_head_dim = 0;
  std::optional<int64_t> sliding_window;  // tokens a query sees, itself included; none: all before it
  QkNorm qk_norm = QkNorm::none;
  bool qkv_bias = false;
  bool output_bias = false;
  bool sinks = false;                 // a learned logit for each head that takes part in the softmax alone
  std::optional<double> score_scale;  // none: head_dim ^ -0.5
  std::optional<LatentAttentionConfig> latent;

  int64_t query_width() const { return heads * head_dim; }
  int64_t key_width() const { return key_value_heads * head_dim; }
  int64_t value_width() const { return key_value_heads * value_head_dim; }
  int64_t output_width() const { return heads * value_head_dim; }
  bool operator==(const AttentionConfig&) const = default;
};

// SwiGLU without biases.
struct DenseMlpConfig {
  int64_t intermediate = 0;

  bool operator==(const DenseMlpConfig&) const = default;
};

// An expert beside the routed ones, which every token goes through.
struct SharedExpertConfig {
  int64_t intermediate = 0;
  bool gated = false;  // its output is scaled by the sigmoid of a logit of the token

  bool operator==(const SharedExpertConfig&) const = default;
};

struct MixtureConfig {
  enum class Scores {
    softmax,            // over all experts
    sigmoid,            // of each logit alone
    softmax_of_chosen,  // over the chosen experts' logits
  };
  enum class GroupScore { sum_of_two_best, best };
  enum class Activation {
    swiglu,          // silu(gate) * up
    clamped_swiglu,  // gpt-oss: (clamp(up, -limit, limit) + 1) * g * sigmoid(alpha * g), g = min(gate, limit)
  };

  int64_t experts = 0;  // of all ranks
  int64_t top_k = 0;
  int64_t intermediate = 0;  // of an expert
  Scores scores = Scores::softmax;
  bool renormalize = true;    // the chosen scores are divided by their sum
  double scaling_factor = 1;  // of the weights
  int64_t groups = 1;         // of neighbouring experts; only those of `chosen_groups` of them can be chosen
  int64_t chosen_groups = 1;
  GroupScore group_score = GroupScore::sum_of_two_best;
  bool selection_bias = false;  // a number for each expert that is added to its score for choosing alone
  bool router_bias = false;
  bool expert_biases = false;  // of gate and up, and of down
  bool input_major = false;    // an expert's matrices lie as [H,2I] and [I,H], not as [2I,H] and [H,I]
  Activation activation = Activation::swiglu;
  double clamp_limit = 7;
  double clamp_alpha = 1.702;
  std::optional<SharedExpertConfig> shared;

  bool operator==(const MixtureConfig&) const = default;
};

struct LayerConfig {
  AttentionConfig attention;
  std::variant<DenseMlpConfig, MixtureConfig> mlp;

  // Null: the layer's MLP is dense.
  const MixtureConfig* mixture() const { return std::get_if<MixtureConfig>(&mlp); }
  bool operator==(const LayerConfig&) const = default;
};

// LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685): beside a matrix W [N,M] lie
// A [r,M] and B [N,r], and the layer computes x W^T + scale * (dropout(x) A^T) B^T.
struct AdapterShape {
  int64_t rank = 0;
  double scale = 1;
  double dropout = 0;             // of what dense layers read, in training
  uint64_t seed = 0;              // of dropout
  std::set<std::string> targets;  // of the dense layers, as published checkpoints call them: q_proj, down_proj, ...
  bool experts = false;           // the matrices of the routed experts
  bool router = false;

  bool operator==(const AdapterShape&) const = default;
};

struct ModelConfig {
  std::string family;  // the model_type of its config.json
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  RotaryConfig rotary;
  std::vector<LayerConfig> layers;  // those that have a mixture have the same
  double router_aux_loss_coef = 0.001;
  double router_jitter_noise = 0.0;
  std::optional<int64_t> bos_token_id = 1;
  std::vector<int64_t> eos_token_ids = {2};  // usually one; may be empty
  std::optional<int64_t> pad_token_id;

  // What a job adds for training.
  std::set<std::string> frozen;         // names of the parameters that stay as they are
  std::optional<AdapterShape> adapter;  // none: the model's own parameters are trained

  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
  // The mixture of every layer that has one. Null: the model is dense.
  const MixtureConfig* mixture() const;
  // The layers that have a mixture, in order: what is counted or carried layer by layer of routing is of these.
  std::vector<int64_t> mixture_layers() const;
  int64_t mixtures() const { return static_cast<int64_t>(mixture_layers().size()); }
  // Of a layer's mixture; 0 of a dense model.
  int64_t experts() const { return mixture() == nullptr ? 0 : mixture()->experts; }
  int64_t top_k() const { return mixture() == nullptr ? 0 : mixture()->top_k; }

  bool operator==(const ModelConfig&) const = default;
};

// The factor of scores and of cosines that yarn takes for sequences `factor` times as long as those of the first
// training (Peng et al., "YaRN", arXiv 2309.00071, section 3.4; mscale: DeepSeek's).
double yarn_scale(double factor, double mscale = 1);

// Of the units of parameters that are gathered together, in forward order: the embedding, each layer, the head.
std::vector<std::string> unit_names(const ModelConfig& config);

// What of the model no block computes, in words that name the value; empty: all of it is computed. The one place that
// knows.
std::vector<std::string> not_computed(const ModelConfig& config);

}  // namespace conclave
