#include "families/ignored_keys.h"

#include <algorithm>
#include <iterator>

namespace conclave {
namespace {

struct Ignored {
  std::string_view key;  // with a star at its end: all keys that begin so
  const char* because;
};

constexpr const char* of_the_file = "says where the file comes from";
constexpr const char* of_the_weights = "weights are read in the type that they are stored in";
constexpr const char* of_results = "what a call returns in Python";
constexpr const char* of_other_heads = "of a classifier, which is not trained here";
constexpr const char* of_execution = "how Transformers computes, not what";
constexpr const char* of_published_training = "says how the published model was trained; a job says how this one is";
constexpr const char* said_elsewhere = "other keys say the same, and Transformers reads those";
constexpr const char* of_generation =
    "for generation, which is not done here; exports take generation_config.json along";
constexpr const char* of_other_models =
    "Transformers reads it for models that have it; a family that has it reads it before";
constexpr const char* of_layers_apart = "of per_layer_config, which is refused";
constexpr const char* overridden = "Transformers reads it where initializer_range or rope_parameters are not known";

constexpr Ignored ignored[] = {
    {"_*", "Transformers' own notes"},
    {"architectures", of_the_file},
    {"auto_map", "code that comes with a model is never run"},
    {"name_or_path", of_the_file},
    {"tags", of_the_file},
    {"transformers_version", of_the_file},
    {"dtype", of_the_weights},
    {"torch_dtype", of_the_weights},
    {"output_attentions", of_results},
    {"output_hidden_states", of_results},
    {"output_router_logits", "moe.moe_load_balancing decides on the balancing loss"},
    {"return_dict", of_results},
    {"use_return_dict", of_results},
    {"classifier_dropout", of_other_heads},
    {"hidden_dropout", of_other_heads},
    {"id2label", of_other_heads},
    {"label2id", of_other_heads},
    {"num_labels", of_other_heads},
    {"problem_type", of_other_heads},
    {"token_classification_bias", of_other_heads},
    {"attn_implementation", of_execution},
    {"base_model_*", of_execution},
    {"chunk_size_feed_forward", of_execution},
    {"distributed_config", of_execution},
    {"experts_implementation", of_execution},
    {"fusion_config", of_execution},
    {"gradient_checkpointing", of_execution},
    {"kernel_config", of_execution},
    {"pretraining_tp", of_execution},
    {"use_cache", of_execution},
    {"aux_loss_alpha", of_published_training},
    {"ep_size", of_published_training},
    {"seq_aux", of_published_training},
    {"num_nextn_predict_layers", "modules that predict further tokens are left out, as Transformers leaves them out"},
    {"experts_per_token", said_elsewhere},
    {"initial_context_length", said_elsewhere},
    {"qk_head_dim", said_elsewhere},
    {"sep_token_id", of_generation},
    {"assistant_confidence_threshold", of_generation},
    {"assistant_lookbehind", of_generation},
    {"bad_words_ids", of_generation},
    {"begin_suppress_tokens", of_generation},
    {"compile_config", of_generation},
    {"diversity_penalty", of_generation},
    {"do_sample", of_generation},
    {"early_stopping", of_generation},
    {"encoder_no_repeat_ngram_size", of_generation},
    {"encoder_repetition_penalty", of_generation},
    {"epsilon_cutoff", of_generation},
    {"eta_cutoff", of_generation},
    {"exponential_decay_length_penalty", of_generation},
    {"forced_bos_token_id", of_generation},
    {"forced_eos_token_id", of_generation},
    {"generation_config", of_generation},
    {"length_penalty", of_generation},
    {"max_length", of_generation},
    {"min_length", of_generation},
    {"no_repeat_ngram_size", of_generation},
    {"num_assistant_tokens", of_generation},
    {"num_assistant_tokens_schedule", of_generation},
    {"num_beam_groups", of_generation},
    {"num_beams", of_generation},
    {"num_return_sequences", of_generation},
    {"output_scores", of_generation},
    {"penalty_alpha", of_generation},
    {"remove_invalid_values", of_generation},
    {"repetition_penalty", of_generation},
    {"return_dict_in_generate", of_generation},
    {"suppress_tokens", of_generation},
    {"target_lookbehind", of_generation},
    {"temperature", of_generation},
    {"top_k", of_generation},
    {"top_p", of_generation},
    {"typical_p", of_generation},
    {"default_theta", overridden},
    {"init_std", overridden},
    {"initializer_factor", overridden},
    {"original_max_position_embeddings", overridden},
    {"allow_global_per_layer_attribute_access", of_layers_apart},
    {"per_layer_attributes", of_layers_apart},
    {"serialize_explicit_per_layer_config", of_layers_apart},
    {"chain_hidden_post_norm", of_other_models},
    {"default_rope_type", of_other_models},
    {"embed_dim", of_other_models},
    {"first_k_dense_replace", of_other_models},
    {"has_no_defaults_at_init", of_other_models},
    {"ignore_keys_at_rope_validation", of_other_models},
    {"logits_mup_width_multiplier", of_other_models},
    {"mtp_*", of_other_models},
    {"num_heads", of_other_models},
    {"number_of_conv_states", of_other_models},
    {"sub_configs", of_other_models},
    {"unpadded_vocab_size", of_other_models},
};

bool covers(const Ignored& each, std::string_view key) {
  if (each.key.ends_with('*')) return key.starts_with(each.key.substr(0, each.key.size() - 1));
  return key == each.key;
}

}  // namespace

bool is_ignored_on_purpose(std::string_view key) {
  return std::any_of(std::begin(ignored), std::end(ignored), [&](const Ignored& each) { return covers(each, key); });
}

}  // namespace conclave
