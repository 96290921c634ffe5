#include "families/family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "mixtral_shape.h"
#include "unit/config/refused.h"

namespace conclave {
namespace {

using nlohmann::json;

// As published with Mixtral-8x7B-v0.1 (Transformers 4).
const char* const version_4 = R"({
  "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
  "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
  "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
  "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": false,
  "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": null,
  "tie_word_embeddings": false, "torch_dtype": "bfloat16", "transformers_version": "4.36.0.dev0", "use_cache": true,
  "vocab_size": 32000
})";

// As Transformers 5.17 writes MixtralConfig(hidden_size=64, head_dim=32, num_attention_heads=4, num_key_value_heads=2,
// rope_theta=5000, ...).
const char* const version_5 = R"({
  "attention_dropout": 0.0, "bos_token_id": null, "eos_token_id": [2, 7], "head_dim": 32, "hidden_act": "silu",
  "hidden_size": 64, "initializer_range": 0.01, "intermediate_size": 96, "max_position_embeddings": 512,
  "model_type": "mixtral", "num_attention_heads": 4, "num_experts_per_tok": 3, "num_hidden_layers": 2,
  "num_key_value_heads": 2, "num_local_experts": 6, "output_router_logits": true, "pad_token_id": 0,
  "rms_norm_eps": 1e-06, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"},
  "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.1, "sliding_window": 128, "tie_word_embeddings": true,
  "transformers_version": "5.17.0", "use_cache": true, "vocab_size": 99
})";

ModelConfig read_text(const std::string& text) {
  const TemporaryFile file("config.json", text);
  return read_model_config(file.path());
}

// The refusal of the Transformers 4 file with other values; null as a value stands for the JSON null, `without` for
// keys taken out.
std::string refusal_with(const json& changes, const std::vector<std::string>& without = {}) {
  json content = json::parse(version_4);
  if (!changes.is_null()) content.update(changes);
  for (const std::string& key : without) content.erase(key);
  const TemporaryFile file("config.json", content.dump());
  std::string text = refusal_of([&] { read_model_config(file.path()); });
  const std::string path = file.path().string();
  for (size_t at; (at = text.find(path)) != std::string::npos;) text.replace(at, path.size(), "config.json");
  return text;
}

// Oracle: the published numbers, spelled out.
TEST(ModelConfig, of_a_version_4_file) {
  const ModelConfig config = read_text(version_4);
  MixtralShape published;
  published.vocab_size = 32000;
  published.hidden_size = 4096;
  published.intermediate_size = 14336;
  published.num_hidden_layers = 32;
  published.num_attention_heads = 32;
  published.num_key_value_heads = 8;
  published.head_dim = 128;
  published.max_position_embeddings = 32768;
  published.rms_norm_eps = 1e-5;
  published.rope_theta = 1e6;
  published.initializer_range = 0.02;
  published.tie_word_embeddings = false;
  published.sliding_window = std::nullopt;
  published.num_experts_per_tok = 2;
  published.num_local_experts = 8;
  published.router_aux_loss_coef = 0.02;
  published.router_jitter_noise = 0;
  EXPECT_EQ(config, published);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{2});
  EXPECT_EQ(config.pad_token_id, std::nullopt);
}

ModelConfig expected_of_version_5() {
  MixtralShape shape;
  shape.vocab_size = 99;
  shape.hidden_size = 64;
  shape.intermediate_size = 96;
  shape.num_hidden_layers = 2;
  shape.num_attention_heads = 4;
  shape.num_key_value_heads = 2;
  shape.head_dim = 32;
  shape.max_position_embeddings = 512;
  shape.rms_norm_eps = 1e-6;
  shape.rope_theta = 5000;
  shape.initializer_range = 0.01;
  shape.tie_word_embeddings = true;
  shape.sliding_window = 128;
  shape.num_experts_per_tok = 3;
  shape.num_local_experts = 6;
  shape.router_aux_loss_coef = 0.001;
  shape.router_jitter_noise = 0.1;
  ModelConfig expected = shape;
  expected.bos_token_id = std::nullopt;
  expected.eos_token_ids = {2, 7};
  expected.pad_token_id = 0;
  return expected;
}

TEST(ModelConfig, of_a_version_5_file) {
  EXPECT_EQ(read_text(version_5), expected_of_version_5());
}

TEST(ModelConfig, of_a_folder) {
  const TemporaryFile file("config.json", version_5);
  EXPECT_EQ(read_model_config(file.folder()), expected_of_version_5());
}

TEST(ModelConfig, what_may_be_null_or_absent) {
  EXPECT_EQ(refusal_with({{"head_dim", nullptr}, {"rope_scaling", nullptr}, {"sliding_window", nullptr}}), "accepted");
  EXPECT_EQ(refusal_with({{"some_new_key", {{"a", 1}}}}), "accepted");
  json content = json::parse(version_4);
  content["num_key_value_heads"] = nullptr;
  content["rope_parameters"] = {{"rope_theta", 1000000.0}, {"rope_type", "default"}};
  EXPECT_EQ(read_text(content.dump()).layers.front().attention.key_value_heads, 32);
  // What a file lacks is what Transformers takes for it.
  for (const char* key : {"rms_norm_eps", "rope_theta", "rope_parameters", "router_aux_loss_coef",
                          "max_position_embeddings", "initializer_range", "tie_word_embeddings", "sliding_window",
                          "bos_token_id", "eos_token_id", "hidden_act", "attention_dropout"})
    content.erase(key);
  const ModelConfig config = read_text(content.dump());
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_EQ(config.rotary.theta, 1e6);
  EXPECT_EQ(config.router_aux_loss_coef, 0.001);
  EXPECT_EQ(config.max_position_embeddings, 131072);
  EXPECT_EQ(config.initializer_range, 0.02);
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{2});
}

// Oracle: the values put in, by way of the JSON text itself and by way of the reader.
TEST(ModelConfig, is_written_so_that_both_versions_read_it) {
  const ModelConfig config = expected_of_version_5();
  const std::string text = hugging_face_config_json(config, "bfloat16");
  EXPECT_EQ(read_text(text), config);
  const json written = json::parse(text);
  EXPECT_EQ(written["architectures"], json::array({"MixtralForCausalLM"}));
  EXPECT_EQ(written["model_type"], "mixtral");
  EXPECT_EQ(written["rope_theta"], 5000.0);
  EXPECT_EQ(written["rope_parameters"], json::parse(R"({"rope_theta": 5000.0, "rope_type": "default"})"));
  EXPECT_EQ(written["dtype"], "bfloat16");
  EXPECT_EQ(written["torch_dtype"], "bfloat16");
  EXPECT_EQ(written["eos_token_id"], json::array({2, 7}));
  EXPECT_TRUE(written["bos_token_id"].is_null());
  EXPECT_EQ(written["output_router_logits"], false);
  // Every key of Transformers' own file is there.
  const json theirs = json::parse(version_5);
  for (const auto& [key, value] : theirs.items())
    EXPECT_TRUE(key == "transformers_version" || written.contains(key)) << key;

  EXPECT_EQ(json::parse(hugging_face_config_json(read_text(version_4), "float32"))["eos_token_id"], 2);
  ModelConfig none = MixtralShape();
  none.eos_token_ids = {};
  EXPECT_EQ(read_text(hugging_face_config_json(none, "float32")), none);
}

TEST(ModelConfigRefusal, of_another_architecture) {
  const std::string remedy = "\n       Use " + a_model_in_words() + ".   (config.json)";
  EXPECT_EQ(refusal_with({{"model_type", "gpt2"}}),
            "model_type is \"gpt2\", which this version does not train." + remedy);
  EXPECT_EQ(refusal_with({{"model_type", 3}}), "model_type is 3, which this version does not train." + remedy);
  EXPECT_EQ(refusal_with({}, {"model_type"}), "model_type is missing." + remedy);
  EXPECT_NE(remedy.find("a model whose model_type is \"mixtral\", "), std::string::npos);
  EXPECT_EQ(refusal_with({{"hidden_act", "gelu"}}),
            "hidden_act is \"gelu\", but this version has MLPs with silu only.\n"
            "       Use a model whose hidden_act is \"silu\".   (config.json)");
  EXPECT_EQ(refusal_with({{"attention_dropout", 0.1}}),
            "attention_dropout is 0.1, but this version has no attention dropout.\n"
            "       Use a model whose attention_dropout is 0.   (config.json)");
  EXPECT_EQ(refusal_with({{"quantization_config", {{"bits", 4}}}}),
            "quantization_config.quant_method is null, but this version reads \"mxfp4\" and \"fp8\" only.\n"
            "       Use the model's unquantized form.   (config.json)");
}

TEST(ModelConfigRefusal, of_another_rotary_embedding) {
  EXPECT_EQ(refusal_with({{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}), "accepted");
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"type", "linear"}, {"factor", 2.0}, {"rope_theta", 5.0}}}}),
            "accepted");
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"rope_type", "yarn"}, {"rope_theta", 1000000.0}}}}),
            "rope_parameters.factor is missing, and this kind of scaling needs it.   (config.json)");
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"rope_type", "yarn"}, {"factor", 4.0}, {"truncate", 1}}}}),
            "rope_parameters.truncate is 1, but it must be true or false.   (config.json)");
  const std::string known =
      ", but this version has the rotary embeddings \"default\", \"linear\", \"llama3\" and \"yarn\" only.\n"
      "       Use a model whose rope_type is one of these.   (config.json)";
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"rope_type", "dynamic"}, {"factor", 2.0}}}}),
            "rope_parameters.rope_type is \"dynamic\"" + known);
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"rope_type", nullptr}}}}), "rope_parameters.rope_type is null" + known);
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"factor", 2.0}}}}),
            "rope_parameters.factor is 2.0, but the default rotary embedding does not use it.\n"
            "       Remove it if the model was trained without, or use a model whose rotary embedding is not scaled.   "
            "(config.json)");
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"full_attention", {{"rope_theta", 5.0}}}}}})
                .find("rope_parameters.full_attention is {\"rope_theta\":5.0}, but"),
            0u);
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"rope_theta", "a"}}}}),
            "rope_parameters.rope_theta is \"a\", but it must be a number above 0.   (config.json)");
  EXPECT_EQ(refusal_with({{"rope_parameters", {{"rope_theta", nullptr}}}}),
            "rope_parameters.rope_theta is null, but it must be a number above 0.   (config.json)");
  EXPECT_EQ(refusal_with({{"rope_theta", nullptr}}),
            "rope_theta is null, but it must be a number above 0.   (config.json)");
  EXPECT_EQ(refusal_with({{"rope_parameters", 3}}), "rope_parameters is 3, but it must be an object.   (config.json)");
  EXPECT_EQ(refusal_with({{"rope_scaling", "linear"}}),
            "rope_scaling is \"linear\", but it must be an object.   (config.json)");
}

double theta_of(const json& changes, bool without_theta = false) {
  json content = json::parse(version_4);
  if (!changes.is_null()) content.update(changes);
  if (without_theta) content.erase("rope_theta");
  return read_text(content.dump()).rotary.theta;
}

// Oracle: Transformers' PreTrainedConfig, as tests/python/test_model_config_keys.py asks it.
TEST(ModelConfig, the_rotary_base_is_the_one_that_transformers_takes) {
  EXPECT_EQ(theta_of({{"rope_parameters", {{"rope_theta", 10.0}, {"rope_type", "default"}}}}), 10.0);
  EXPECT_EQ(theta_of({{"rope_parameters", {{"rope_type", "default"}}}}), 1e6);
  EXPECT_EQ(theta_of({{"rope_theta", 7.0}, {"rope_parameters", json::object()}}), 7.0);
  EXPECT_EQ(theta_of({{"rope_theta", 7.0}, {"rope_scaling", {{"rope_type", "default"}}}}), 7.0);
  EXPECT_EQ(theta_of({{"rope_theta", 7.0}, {"rope_scaling", {{"type", "default"}, {"rope_theta", 9}}}}), 9.0);
  EXPECT_EQ(theta_of({{"rope_parameters", {{"rope_theta", 10.0}}}, {"rope_scaling", {{"rope_type", "default"}}}}, true),
            1e6);
  EXPECT_EQ(theta_of({{"rope_parameters", {{"rope_theta", 10.0}}}, {"rope_scaling", json::object()}}), 10.0);
  EXPECT_EQ(theta_of({{"rope_parameters", {{"type", "linear"}, {"rope_type", "default"}}}}), 1e6);
  EXPECT_EQ(theta_of({}, true), 1e6);
}

TEST(ModelConfig, newer_names_and_absent_heads) {
  const auto read_with = [](const json& changes, const std::vector<std::string>& without) {
    json content = json::parse(version_4);
    if (!changes.is_null()) content.update(changes);
    for (const std::string& key : without) content.erase(key);
    return read_text(content.dump());
  };
  EXPECT_EQ(read_with({{"num_experts", 6}}, {"num_local_experts"}).experts(), 6);
  EXPECT_EQ(read_with({{"num_experts", 6}}, {}).experts(), 6);
  EXPECT_EQ(read_with({{"num_experts", nullptr}}, {}).experts(), 8);
  EXPECT_EQ(read_with({}, {"num_key_value_heads"}).layers.front().attention.key_value_heads,
            8);  // MixtralConfig's default
  EXPECT_EQ(read_with({{"num_attention_heads", 4}}, {"num_key_value_heads"}).layers.front().attention.key_value_heads,
            4);
  EXPECT_EQ(read_with({{"num_key_value_heads", nullptr}}, {}).layers.front().attention.key_value_heads, 32);
  EXPECT_EQ(read_with({{"head_dim", nullptr}}, {}).layers.front().attention.head_dim, 128);
  EXPECT_EQ(read_with({{"hidden_act", "swish"}}, {}), read_with({}, {}));
}

// Keys that make Transformers compute another model, or read other files.
TEST(ModelConfigRefusal, of_what_this_version_does_not_compute) {
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, json>>{{"is_causal", false},
                                                 {"partial_rotary_factor", 0.5},
                                                 {"attention_chunk_size", 128},
                                                 {"num_kv_shared_layers", 2},
                                                 {"num_mtp_layers", 1},
                                                 {"per_layer_config", {{"0", {{"num_key_value_heads", 4}}}}},
                                                 {"configuration_files", {"config.4.0.0.json"}},
                                                 {"transformers_weights", "other.safetensors"},
                                                 {"text_config", {{"vocab_size", 3}}},
                                                 {"attribute_map", {{"hidden_size", "vocab_size"}}},
                                                 {"layer_types", std::vector<std::string>(31, "full_attention")},
                                                 {"layer_types", std::vector<std::string>(32, "sliding_attention")},
                                                 {"mlp_layer_types", std::vector<std::string>(32, "dense")}}) {
    const std::string refusal = refusal_with({{key, value}});
    EXPECT_EQ(refusal.find(key + " is " + value.dump() + ", but "), 0u) << refusal;
    EXPECT_EQ(refusal_with({{key, nullptr}}), "accepted") << key;
  }
  EXPECT_EQ(refusal_with({{"is_causal", true},
                          {"partial_rotary_factor", 1.0},
                          {"per_layer_config", json::object()},
                          {"layer_types", std::vector<std::string>(32, "full_attention")},
                          {"mlp_layer_types", std::vector<std::string>(32, "sparse")}}),
            "accepted");
}

TEST(ModelConfig, keys_that_nobody_knows_are_told) {
  json content = json::parse(version_4);
  EXPECT_THAT(unknown_keys(TemporaryFile("config.json", content.dump()).path()), testing::IsEmpty());
  content.update({{"slidng_window", 5}, {"_name_or_path", "x"}, {"temperature", 1}, {"rope_typo", {{"a", 1}}}});
  EXPECT_THAT(unknown_keys(TemporaryFile("config.json", content.dump()).path()),
              testing::ElementsAre("rope_typo", "slidng_window"));
}

TEST(ModelConfigRefusal, of_values_by_themselves) {
  EXPECT_EQ(refusal_with({}, {"hidden_size"}), "hidden_size is missing.   (config.json)");
  EXPECT_EQ(refusal_with({{"num_local_experts", nullptr}}), "num_local_experts is missing.   (config.json)");
  EXPECT_EQ(refusal_with({{"vocab_size", 0}}),
            "vocab_size is 0, but it must be a whole number from 1 to 2147483647.   (config.json)");
  EXPECT_EQ(refusal_with({{"vocab_size", 1.5}}),
            "vocab_size is 1.5, but it must be a whole number from 1 to 2147483647.   (config.json)");
  EXPECT_EQ(refusal_with({{"vocab_size", 18446744073709551615ull}}),
            "vocab_size is 18446744073709551615, but it must be a whole number from 1 to 2147483647.   (config.json)");
  EXPECT_EQ(refusal_with({{"sliding_window", -1}}),
            "sliding_window is -1, but it must be a whole number from 1 to 2147483647.   (config.json)");
  EXPECT_EQ(refusal_with({{"rms_norm_eps", "1e-5"}}),
            "rms_norm_eps is \"1e-5\", but it must be a number above 0.   (config.json)");
  EXPECT_EQ(refusal_with({{"rope_theta", 0}}), "rope_theta is 0, but it must be a number above 0.   (config.json)");
  EXPECT_EQ(refusal_with({{"router_aux_loss_coef", -0.5}}),
            "router_aux_loss_coef is -0.5, but it must be a number of at least 0.   (config.json)");
  EXPECT_EQ(refusal_with({{"tie_word_embeddings", "no"}}),
            "tie_word_embeddings is \"no\", but it must be true or false.   (config.json)");
  EXPECT_EQ(refusal_with({{"eos_token_id", {1, -2}}}),
            "eos_token_id is [1,-2], but it must be a token id, a list of them, or null.   (config.json)");
  EXPECT_EQ(refusal_with({{"bos_token_id", {1, 2}}}),
            "bos_token_id is [1,2], but it must be a token id or null.   (config.json)");
  EXPECT_EQ(refusal_with({{"router_jitter_noise", 1}}),
            "router_jitter_noise is 1, but it must be less than 1.   (config.json)");
}

TEST(ModelConfigRefusal, of_values_that_do_not_fit_each_other) {
  EXPECT_EQ(refusal_with({{"num_key_value_heads", 5}}),
            "num_attention_heads is 32, but num_key_value_heads is 5 and must divide it.\n"
            "       Use a divisor of num_attention_heads.   (config.json)");
  EXPECT_EQ(refusal_with({{"num_experts_per_tok", 9}}),
            "num_experts_per_tok is 9, but there are only 8 experts (num_local_experts).\n"
            "       Use at most 8.   (config.json)");
  EXPECT_EQ(refusal_with({{"head_dim", 33}}),
            "head_dim is 33, but the rotary embedding turns pairs of elements, so it must be even.\n"
            "       Use an even head_dim.   (config.json)");
  EXPECT_EQ(refusal_with({{"hidden_size", 96}}),
            "head_dim is 3 (hidden_size / num_attention_heads), but the rotary embedding turns pairs of elements, so "
            "it must be "
            "even.\n       Use an even head_dim.   (config.json)");
  EXPECT_EQ(refusal_with({{"hidden_size", 100}}),
            "hidden_size is 100 and num_attention_heads is 32, which does not divide it, and there is no head_dim.\n"
            "       Give head_dim, or another number of heads.   (config.json)");
  EXPECT_EQ(refusal_with({{"hidden_size", 100}, {"head_dim", 64}}), "accepted");
}

TEST(ModelConfigRefusal, tells_all_mistakes_at_once) {
  EXPECT_EQ(refusal_with({{"vocab_size", "a"}}, {"hidden_size"}),
            "vocab_size is \"a\", but it must be a whole number from 1 to 2147483647.   (config.json)\n"
            "error: hidden_size is missing.   (config.json)");
}

TEST(ModelConfigRefusal, of_files_that_are_no_config) {
  const std::string remedy =
      "\n       Give a Hugging Face config.json of " + a_model_in_words() + ", or a folder that holds one.";
  EXPECT_EQ(refusal_of([] { read_model_config("/nonexistent/config.json"); }),
            "the model config is of no use: cannot read /nonexistent/config.json: No such file or directory." + remedy);
  const TemporaryFile other("other.json", "{");
  const std::string path = other.path().string();
  EXPECT_EQ(refusal_of([&] { read_model_config(other.folder()); }),
            "the folder " + other.folder().string() + " holds no config.json." + remedy);
  const std::string not_json = refusal_of([&] { read_model_config(other.path()); });
  EXPECT_EQ(not_json.find(path + " is not valid JSON: parse error at line 1, column 2: "), 0u) << not_json;
  EXPECT_NE(refusal_of([] { read_text(""); }).find("is not valid JSON"), std::string::npos);
  EXPECT_EQ(refusal_of([] { read_text("[1]"); }).find("the model config is not a JSON object."), 0u);
  EXPECT_NE(refusal_of([] { read_text("{\"a\": 1e999}"); }).find("is not valid JSON: number overflow"),
            std::string::npos);
  EXPECT_NE(refusal_of([] { read_text("{\"a\": 1, \"a\": 2}"); }).find("has the key \"a\" twice"), std::string::npos);
}

// Every key that is read, with a value so deep that a recursive reader or printer would run out of its stack.
TEST(ModelConfigRefusal, of_bottomless_values) {
  json content = json::parse(version_4);
  content.update({{"rope_parameters", nullptr}, {"quantization_config", nullptr}, {"unread", nullptr}});
  for (const auto& [key, value] : content.items()) {
    json changed = content;
    changed[key] = "HERE";
    for (const auto& [open, close] : {std::pair("[", "]"), std::pair("{\"a\":", "}")}) {
      std::string deep;
      for (int i = 0; i < 100000; ++i) deep += open;
      deep += "1";
      for (int i = 0; i < 100000; ++i) deep += close;
      std::string text = changed.dump();
      text.replace(text.find("\"HERE\""), 6, deep);
      EXPECT_NE(refusal_of([&] { read_text(text); }).find("nested deeper than 127 levels"), std::string::npos) << key;
    }
  }
}

TEST(ModelConfigRefusal, of_what_is_no_regular_file) {
  const TemporaryFile here("here.json", version_4);
  const std::filesystem::path folder = here.folder();
  const auto refusal = [&](const std::string& name) { return refusal_of([&] { read_model_config(folder / name); }); };
  std::filesystem::create_symlink("b.json", folder / "a.json");
  std::filesystem::create_symlink("a.json", folder / "b.json");
  EXPECT_NE(refusal("a.json").find("Too many levels of symbolic links"), std::string::npos);
  EXPECT_NE(refusal(std::string(300, 'x')).find("File name too long"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_NE(refusal("fifo").find("it is not a regular file"), std::string::npos);
  EXPECT_NE(refusal_of([] { read_model_config("/dev/zero"); }).find("it is not a regular file"), std::string::npos);
  std::filesystem::create_symlink("nowhere", folder / "config.json");
  EXPECT_NE(refusal("").find("No such file or directory"), std::string::npos);
}

}  // namespace
}  // namespace conclave
