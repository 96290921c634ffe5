#include "config/model_flops.h"

#include <gtest/gtest.h>

#include "mixtral_shape.h"

namespace conclave {
namespace {

const MixtralShape mixtral_8x7b;  // the defaults are its shape

// Oracle: twice the weights a token meets, counted from the checkpoint's tensors ("12.9 B active parameters", the
// model's publication, includes the 131 M of the embedding and the norms, which multiply nothing).
TEST(Flops, of_mixtral_8x7b_are_twice_its_active_weights_plus_attention) {
  const int64_t query_and_output = 2 * 4096ll * 4096;
  const int64_t key_and_value = 2 * 4096ll * 1024;
  const int64_t gate = 4096ll * 8;
  const int64_t two_experts = 2 * 3 * 4096ll * 14336;
  const int64_t weights = 32 * (query_and_output + key_and_value + gate + two_experts) + 32000ll * 4096;
  EXPECT_EQ(weights, 12748587008);
  const int64_t scores =
      32ll * 32 * (2048 * 128 * 2 + 2048 * 128 * 2);  // layers, heads, (query x key, probability x value)
  EXPECT_EQ(forward_flops_per_token(mixtral_8x7b, 2048).total(), 2 * weights + scores);
}

// Oracle: PaLM's 6N + 12LHQT for training, N the weights that multiply, L layers, H heads, Q head dim, T sequence.
TEST(Flops, of_training_equal_palms_formula) {
  const int64_t n = 12748587008;
  EXPECT_EQ(training_flops_per_token(mixtral_8x7b, 4096), 6 * n + 12ll * 32 * 32 * 128 * 4096);
}

TEST(Flops, count_the_chosen_experts_and_the_window_alone) {
  MixtralShape config = mixtral_8x7b;
  config.num_local_experts = 64;
  EXPECT_EQ(forward_flops_per_token(config, 2048).experts, forward_flops_per_token(mixtral_8x7b, 2048).experts);
  config = mixtral_8x7b;
  config.sliding_window = 1024;
  EXPECT_EQ(forward_flops_per_token(config, 4096).attention_scores,
            forward_flops_per_token(mixtral_8x7b, 1024).attention_scores);
  EXPECT_EQ(forward_flops_per_token(config, 512).attention_scores,
            forward_flops_per_token(mixtral_8x7b, 512).attention_scores);
}

// Oracle: by hand, from the shapes of the products.
TEST(Flops, follow_from_each_layer_s_own_blocks) {
  ModelConfig config = MixtralShape{.hidden_size = 64, .num_hidden_layers = 3, .num_attention_heads = 4};
  config.layers[0].mlp = DenseMlpConfig{200};
  config.layers[1].attention.sliding_window = 16;
  const ForwardFlops flops = forward_flops_per_token(config, 100);
  EXPECT_EQ(flops.dense_mlps, 3 * 2 * 64 * 200);
  EXPECT_EQ(flops.router, 2 * 2 * 64 * 8);
  EXPECT_EQ(flops.experts, 2 * 2 * 3 * 2 * 64 * 14336);
  EXPECT_EQ(flops.attention_scores, (2 * 100 + 16) * 2 * 2 * 4 * 128);
}

TEST(Flops, utilization_is_unknown_without_a_peak) {
  EXPECT_EQ(model_flops_utilization(100, 50.0, std::nullopt), std::nullopt);
  EXPECT_EQ(model_flops_utilization(100, 50.0, 0.0), std::nullopt);
  EXPECT_DOUBLE_EQ(model_flops_utilization(100, 50.0, 20000.0).value(), 0.25);
}

}  // namespace
}  // namespace conclave
