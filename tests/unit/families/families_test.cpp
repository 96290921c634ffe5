// What holds of every family. Oracle: the blocks' own declarations.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "families/family.h"
#include "mixtral_shape.h"
#include "model/parameters.h"

namespace conclave {
namespace {

// Each head has keys and values of its own.
bool has_latent_attention(const Family& family) {
  return family.model_type.starts_with("deepseek");
}

// What a file of any family may say; each reads what it knows.
nlohmann::json config_of(const Family& family) {
  return {{"model_type", family.model_type},
          {"vocab_size", 40},
          {"hidden_size", 32},
          {"intermediate_size", 48},
          {"moe_intermediate_size", 24},
          {"shared_expert_intermediate_size", 40},
          {"num_hidden_layers", 3},
          {"num_attention_heads", 4},
          {"num_key_value_heads", has_latent_attention(family) ? 4 : 2},
          {"first_k_dense_replace", 1},
          {"n_routed_experts", 8},
          {"head_dim", 8},
          {"num_local_experts", 8},
          {"num_experts_per_tok", 2}};
}

class EachFamily : public testing::TestWithParam<const Family*> {
 protected:
  ModelConfig config() const { return parse_model_config(config_of(*GetParam()).dump(), "config.json"); }
};

TEST_P(EachFamily, reads_back_what_it_writes) {
  const ModelConfig read = config();
  EXPECT_EQ(read.family, GetParam()->model_type);
  const std::string text = hugging_face_config_json(read, "float32");
  EXPECT_EQ(parse_model_config(text, "written"), read);
  EXPECT_EQ(nlohmann::json::parse(text)["architectures"][0], GetParam()->architecture);
}

TEST_P(EachFamily, gives_every_parameter_a_place_on_disk) {
  const ModelConfig read = config();
  std::vector<std::string> declared;
  for (const UnitDeclaration& unit : declare_model(read))
    for (const ParameterDeclaration& parameter : unit.parameters) declared.push_back(parameter.name);
  std::vector<std::string> named;
  std::set<std::string> on_disk;
  for (const DiskNames& names : disk_names(read)) {
    named.push_back(names.parameter);
    int64_t numel = 1, parts = 0;
    for (const int64_t size : names.shape) numel *= size;
    for (const DiskTensor& part : names.parts) {
      EXPECT_TRUE(on_disk.insert(part.name).second) << part.name << " is there twice";
      int64_t of_part = 1;
      for (const int64_t size : part.shape) of_part *= size;
      parts += of_part;
    }
    EXPECT_EQ(parts, numel) << names.parameter;
  }
  EXPECT_EQ(named, declared);
}

INSTANTIATE_TEST_SUITE_P(, EachFamily, testing::ValuesIn(families()),
                         [](const auto& each) { return std::string(each.param->model_type); });

// Oracle: what a Mixtral's parameters were called and shaped when the program knew no other family; checkpoints hold
// these names.
TEST(Families, a_mixtral_s_parameters_keep_their_names_and_order) {
  const ModelConfig config = MixtralShape{.vocab_size = 11,
                                          .hidden_size = 8,
                                          .intermediate_size = 6,
                                          .num_hidden_layers = 1,
                                          .num_attention_heads = 2,
                                          .num_key_value_heads = 1,
                                          .head_dim = 4,
                                          .num_local_experts = 3};
  const std::vector<std::pair<std::string, std::vector<int64_t>>> expected = {{"embed_tokens", {11, 8}},
                                                                              {"layers.0.input_norm", {8}},
                                                                              {"layers.0.attention.qkv", {16, 8}},
                                                                              {"layers.0.attention.output", {8, 8}},
                                                                              {"layers.0.post_attention_norm", {8}},
                                                                              {"layers.0.router", {3, 8}},
                                                                              {"layers.0.experts.gate_up", {3, 12, 8}},
                                                                              {"layers.0.experts.down", {3, 8, 6}},
                                                                              {"norm", {8}},
                                                                              {"lm_head", {11, 8}}};
  std::vector<std::pair<std::string, std::vector<int64_t>>> declared;
  for (const UnitDeclaration& unit : declare_model(config))
    for (const ParameterDeclaration& parameter : unit.parameters)
      declared.emplace_back(parameter.name, parameter.shape);
  EXPECT_EQ(declared, expected);
}

TEST(Families, what_no_block_computes_is_refused_by_name) {
  ModelConfig config = MixtralShape();
  EXPECT_TRUE(not_computed(config).empty());
  config.layers[3].mlp = DenseMlpConfig{100};
  EXPECT_TRUE(not_computed(config).empty());
  MixtureConfig other = *config.mixture();
  other.top_k = 1;
  config.layers[4].mlp = other;
  EXPECT_EQ(not_computed(config), std::vector<std::string>{"mixtures that differ from layer to layer"});
}

}  // namespace
}  // namespace conclave
