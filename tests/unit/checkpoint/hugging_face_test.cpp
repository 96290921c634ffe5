#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "checkpoint/hugging_face_export.h"
#include "checkpoint/hugging_face_files.h"
#include "checkpoint/hugging_face_reader.h"
#include "checkpoint/safetensors_writer.h"
#include "thread_world.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::Each;
using testing::HasSubstr;

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

// A model in small: V 5, H 4, E 2, I 3. gate_up_proj [E, 2I, H] is w1, w3 of each expert, one after the other.
const std::vector<DiskNames>& model() {
  static const std::vector<DiskNames> names = {
      {"model.embed_tokens.weight", {5, 4}, {{"model.embed_tokens.weight", {5, 4}}}, {}},
      {"model.layers.0.mlp.experts.gate_up_proj",
       {2, 6, 4},
       {{"model.layers.0.block_sparse_moe.experts.0.w1.weight", {3, 4}},
        {"model.layers.0.block_sparse_moe.experts.0.w3.weight", {3, 4}},
        {"model.layers.0.block_sparse_moe.experts.1.w1.weight", {3, 4}},
        {"model.layers.0.block_sparse_moe.experts.1.w3.weight", {3, 4}}},
       {{"model.layers.0.mlp.experts.gate_up_proj", {2, 6, 4}}}},
      {"model.norm.weight", {4}, {{"model.norm.weight", {4}}}, {}},
  };
  return names;
}

// The parameters' values: multiples of 1/8 that every float type of 8 bits of significand holds.
at::Tensor value_of(const DiskNames& names) {
  const int64_t count = checked_numel(names.shape).value();
  return (at::arange(count).remainder(97).to(at::kFloat) / 8 - static_cast<float>(names.parameter.size()) / 8)
      .view(names.shape);
}

NamedTensors per_expert_form(at::ScalarType type = at::kFloat) {
  const at::Tensor gate_up = value_of(model()[1]);
  NamedTensors tensors = {{"model.embed_tokens.weight", value_of(model()[0])},
                          {"model.norm.weight", value_of(model()[2])}};
  for (int64_t expert : {0, 1}) {
    const std::string prefix = fmt::format("model.layers.0.block_sparse_moe.experts.{}.", expert);
    tensors.emplace_back(prefix + "w1.weight", gate_up[expert].narrow(0, 0, 3));
    tensors.emplace_back(prefix + "w3.weight", gate_up[expert].narrow(0, 3, 3));
  }
  for (auto& [name, tensor] : tensors) tensor = tensor.to(type);
  return tensors;
}

NamedTensors fused_form() {
  return {{"model.embed_tokens.weight", value_of(model()[0])},
          {"model.norm.weight", value_of(model()[2])},
          {"model.layers.0.mlp.experts.gate_up_proj", value_of(model()[1])}};
}

// The slices of one of `ranks` ranks when every parameter is divided evenly, however oddly that cuts it.
std::vector<TensorSlice> slices_of(int rank, int ranks, bool filled) {
  std::vector<TensorSlice> slices;
  for (const DiskNames& names : model()) {
    const at::Tensor whole = value_of(names).view(-1);
    const int64_t begin = whole.numel() * rank / ranks, end = whole.numel() * (rank + 1) / ranks;
    const at::Tensor part = whole.narrow(0, begin, end - begin).clone();
    slices.push_back({names.parameter, names.shape, begin, filled ? part : at::full_like(part, -1000)});
  }
  return slices;
}

void expect_loads(const std::filesystem::path& folder) {
  for (int ranks : {1, 2, 3, 5, 7, 48}) {
    for (int rank = 0; rank < ranks; ++rank) {
      const std::vector<TensorSlice> loaded = slices_of(rank, ranks, false);
      const HuggingFaceReader reader(folder, model());
      for (const TensorSlice& slice : loaded) reader.load(slice);
      const std::vector<TensorSlice> expected = slices_of(rank, ranks, true);
      for (size_t i = 0; i < loaded.size(); ++i) {
        EXPECT_TRUE(loaded[i].data.equal(expected[i].data)) << loaded[i].name << ", rank " << rank << " of " << ranks;
      }
    }
  }
}

std::string refusal(const std::filesystem::path& folder) {
  return message_of<UserError>([&] { HuggingFaceReader reader(folder, model()); });
}

// Divides tensors over two shards and writes the index, changed by `edit`.
void write_sharded(
    const std::filesystem::path& folder, const NamedTensors& tensors,
    const std::function<void(nlohmann::json&)>& edit = [](auto&) {}) {
  std::array<NamedTensors, 2> shards;
  nlohmann::json index;
  for (size_t i = 0; i < tensors.size(); ++i) {
    shards[i % 2].push_back(tensors[i]);
    index["weight_map"][tensors[i].first] =
        i % 2 == 0 ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  write_safetensors(folder / "model-00001-of-00002.safetensors", shards[0]);
  write_safetensors(folder / "model-00002-of-00002.safetensors", shards[1]);
  edit(index);
  write_bytes(folder / index_file_name, index.dump());
}

// Oracle of all loading tests: value_of, cut into slices. Exact: every type used here holds the values.
TEST(HuggingFaceImport, per_expert_form_of_any_float_type) {
  for (at::ScalarType type : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    const TestFolder folder;
    write_safetensors(folder / single_file_name, per_expert_form(type));
    expect_loads(folder.path());
  }
}

TEST(HuggingFaceImport, fused_form) {
  const TestFolder folder;
  write_safetensors(folder / single_file_name, fused_form());
  expect_loads(folder.path());
}

TEST(HuggingFaceImport, shards_with_an_index) {
  const TestFolder folder;
  write_sharded(folder.path(), per_expert_form());
  expect_loads(folder.path());
}

// What this process has asked the kernel to read so far.
int64_t bytes_read() {
  std::ifstream counters("/proc/self/io");
  std::string key;
  int64_t value = 0;
  while (counters >> key >> value) {
    if (key == "rchar:") return value;
  }
  throw std::runtime_error("/proc/self/io has no rchar");
}

// Oracle: the kernel's count of bytes read, against the bytes of the rank's elements on disk and the files' headers.
// The slack is for the reading of the counter itself, and for the first and last page of reads of 1 MiB and more.
TEST(HuggingFaceImport, a_rank_reads_the_bytes_it_needs_and_the_headers) {
  const int64_t rows = 4096, width = 32;
  std::vector<DiskNames> model = {{"experts", {4, rows, width}, {}, {}},
                                  {"dense", {rows, width}, {{"dense", {rows, width}}}, {}}};
  for (int expert = 0; expert < 4; ++expert)
    model[0].parts.push_back({fmt::format("expert.{}", expert), {rows, width}});
  for (at::ScalarType type : {at::kDouble, at::kFloat, at::kBFloat16, at::kHalf, at::kFloat8_e4m3fn}) {
    const TestFolder folder;
    NamedTensors tensors = {{"dense", at::ones({rows, width}).to(type)}};
    for (const DiskTensor& part : model[0].parts) tensors.emplace_back(part.name, at::ones({rows, width}).to(type));
    write_sharded(folder.path(), tensors);
    int64_t headers = static_cast<int64_t>(std::filesystem::file_size(folder / index_file_name));
    for (const char* file : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
      const SafetensorsReader reader(folder / file);
      headers += static_cast<int64_t>(reader.tensors().front().begin);
    }
    for (int ranks : {1, 2, 3, 8}) {
      for (int rank = 0; rank < ranks; ++rank) {
        std::vector<TensorSlice> slices;
        int64_t elements = 0;
        for (const DiskNames& parameter : model) {
          const int64_t count = checked_numel(parameter.shape).value();
          const int64_t begin = count * rank / ranks, end = count * (rank + 1) / ranks;
          slices.push_back({parameter.parameter, parameter.shape, begin, at::zeros({end - begin})});
          elements += end - begin;
        }
        const int64_t before = bytes_read();
        const HuggingFaceReader reader(folder.path(), model);
        for (const TensorSlice& slice : slices) reader.load(slice);
        const int64_t read = bytes_read() - before;
        const int64_t needed = headers + elements * static_cast<int64_t>(c10::elementSize(type));
        EXPECT_GE(read, needed);
        const int64_t pages_of_large_reads = 2 * 4096 * (needed >> 20);
        EXPECT_LE(read, needed + 1024 + pages_of_large_reads)
            << c10::toString(type) << ", rank " << rank << " of " << ranks;
        for (const TensorSlice& slice : slices) EXPECT_TRUE(slice.data.eq(1).all().item<bool>());
      }
    }
  }
}

TEST(HuggingFaceImport, harmless_tensors_are_ignored) {
  const TestFolder folder;
  NamedTensors tensors = per_expert_form();
  tensors.emplace_back("model.layers.0.self_attn.rotary_emb.inv_freq", at::ones({2}));
  write_safetensors(folder / single_file_name, tensors);
  expect_loads(folder.path());
}

// A parameter of one tensor with another name, as a tied head is: either name, or both with the same values.
TEST(HuggingFaceImport, a_parameter_under_two_names_must_be_the_same_under_both) {
  std::vector<DiskNames> tied = model();
  tied[0].alternative = {{"lm_head.weight", {5, 4}}};
  const at::Tensor value = value_of(tied[0]);
  at::Tensor other = value.clone();
  other[4][3] = 77;
  for (const auto& [head, said] :
       std::vector<std::pair<at::Tensor, std::string>>{{value, ""},
                                                       {value.to(at::kDouble), ""},
                                                       {other, "different values"},
                                                       {at::full_like(value, NAN), "different values"},
                                                       {at::ones({4, 4}), "has shape [4, 4]"}}) {
    const TestFolder folder;
    NamedTensors tensors = per_expert_form();
    tensors.emplace_back("lm_head.weight", head);
    write_safetensors(folder / single_file_name, tensors);
    const std::string refusal = message_of<UserError>([&] { HuggingFaceReader reader(folder.path(), tied); });
    EXPECT_THAT(refusal, said.empty() ? testing::Matcher<std::string>(testing::IsEmpty()) : HasSubstr(said));
  }
  const TestFolder folder;
  NamedTensors tensors = per_expert_form();
  tensors[0].first = "lm_head.weight";
  write_safetensors(folder / single_file_name, tensors);
  const HuggingFaceReader reader(folder.path(), tied);
  const at::Tensor loaded = at::zeros({20});
  reader.load({tied[0].parameter, tied[0].shape, 0, loaded});
  EXPECT_TRUE(loaded.view({5, 4}).equal(value));
}

TEST(HuggingFaceImport, a_model_that_does_not_fit_is_refused_by_tensor_and_file) {
  struct Case {
    std::function<void(NamedTensors&)> change;
    std::vector<std::string> said;
  };
  const auto named = [](NamedTensors& tensors, const std::string& name) -> at::Tensor& {
    return std::find_if(tensors.begin(), tensors.end(), [&](const auto& entry) { return entry.first == name; })->second;
  };
  const std::vector<Case> cases = {
      {[](NamedTensors& t) { t.pop_back(); },
       {"no tensor \"model.layers.0.block_sparse_moe.experts.1.w3.weight\"", "gate_up_proj"}},
      {[](NamedTensors& t) { t.resize(2); }, {"no tensor \"model.layers.0.block_sparse_moe.experts.0.w1.weight\""}},
      {[&](NamedTensors& t) { named(t, "model.norm.weight") = at::ones({5}); },
       {"\"model.norm.weight\"", "[5]", "[4]", single_file_name}},
      {[&](NamedTensors& t) {
         named(t, "model.norm.weight") = at::ones({4, 1});
       },
       {"\"model.norm.weight\"", "[4, 1]", "[4]"}},
      {[&](NamedTensors& t) { named(t, "model.norm.weight") = at::ones({4}, at::kChar); },
       {"\"model.norm.weight\"", "I8", single_file_name}},
      {[](NamedTensors& t) { t.emplace_back("model.layers.1.input_layernorm.weight", at::ones({4})); },
       {"\"model.layers.1.input_layernorm.weight\"", "no parameter", single_file_name}},
      {[](NamedTensors& t) {
         t.emplace_back("model.layers.0.mlp.experts.gate_up_proj", at::ones({2, 6, 4}));
       },
       {"\"model.layers.0.mlp.experts.gate_up_proj\"", "no parameter"}},
  };
  for (const Case& each : cases) {
    const TestFolder folder;
    NamedTensors tensors = per_expert_form();
    each.change(tensors);
    write_safetensors(folder / single_file_name, tensors);
    for (const std::string& said : each.said) EXPECT_THAT(refusal(folder.path()), HasSubstr(said));
  }
}

TEST(HuggingFaceImport, a_malformed_index_is_refused) {
  struct Case {
    std::function<void(nlohmann::json&)> edit;
    std::string said;
  };
  const std::vector<Case> cases = {
      {[](auto& index) { index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"; },
       "says it is in model-00001-of-00002.safetensors"},
      {[](auto& index) { index["weight_map"].erase("model.norm.weight"); }, "holds tensor \"model.norm.weight\", but"},
      {[](auto& index) { index["weight_map"]["absent"] = "model-00001-of-00002.safetensors"; }, "\"absent\" is in"},
      {[](auto& index) { index["weight_map"]["absent"] = "model-00003-of-00002.safetensors"; },
       "names model-00003-of-00002.safetensors"},
      {[](auto& index) { index["weight_map"]["absent"] = "../model-00001-of-00002.safetensors"; },
       "in the same folder"},
      {[](auto& index) { index["weight_map"]["absent"] = "/etc/passwd"; }, "in the same folder"},
      {[](auto& index) { index["weight_map"]["absent"] = 1; }, "must be a string"},
      {[](auto& index) { index["weight_map"] = 1; }, "no \"weight_map\" object"},
      {[](auto& index) { index.erase("weight_map"); }, "no \"weight_map\" object"},
      {[](auto& index) { index = 1; }, "no \"weight_map\" object"},
  };
  for (const Case& each : cases) {
    const TestFolder folder;
    write_sharded(folder.path(), per_expert_form(), each.edit);
    EXPECT_THAT(refusal(folder.path()), AllOf(HasSubstr(index_file_name), HasSubstr(each.said)));
  }
  const TestFolder folder;
  for (const auto& [text, said] : std::vector<std::pair<std::string, std::string>>{
           {R"({"weight_map":{"a":"x.safetensors","a":"x.safetensors"}})", "key \"a\" twice"},
           {R"({"weight_map":{}}x)", "not valid JSON"},
           {std::string("{\"weight_map\":{}}\0x", 18), "zero byte"},
           {"{\"weight_map\":{\"\x80\":\"x.safetensors\"}}", "not valid JSON"},
           {std::string(1000, '['), "nested deeper"}}) {
    write_bytes(folder / index_file_name, text);
    EXPECT_THAT(refusal(folder.path()), AllOf(HasSubstr(index_file_name), HasSubstr(said)));
  }
}

TEST(HuggingFaceImport, a_folder_without_safetensors_is_refused) {
  const TestFolder folder;
  EXPECT_THAT(refusal(folder.path()), HasSubstr("holds neither"));
  write_bytes(folder / "pytorch_model.bin", "");
  EXPECT_THAT(refusal(folder.path()), HasSubstr("save_pretrained"));
  EXPECT_THAT(refusal(folder / "absent"), HasSubstr("not a folder"));
}

HuggingFaceExportOptions export_options() {
  HuggingFaceExportOptions options;
  options.config_json = "{\"model_type\": \"mixtral\"}\n";
  options.overwrite = Overwrite::replace;
  return options;
}

// Every rank writes its slices of the layout, unless `change` makes it write others.
std::vector<std::string> export_model(
    const std::filesystem::path& folder, int ranks, const HuggingFaceExportOptions& options,
    const std::function<void(int rank, std::vector<TensorSlice>&)>& change = [](int, auto&) {}) {
  return run_ranks(ranks, [&](Communicator& world) {
    std::vector<TensorSlice> slices = slices_of(world.rank(), ranks, true);
    change(world.rank(), slices);
    HuggingFaceExport out(folder, model(), options, world);
    for (const TensorSlice& slice : slices) out.write(slice);
    out.finish();
  });
}

std::vector<std::string> entries_of(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// Oracle: the file that one process writes from the whole tensors, byte for byte.
TEST(HuggingFaceExport, any_number_of_ranks_writes_the_same_file) {
  const TestFolder folder;
  for (at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    write_safetensors(folder / "expected.safetensors", per_expert_form(type));
    HuggingFaceExportOptions options = export_options();
    options.dtype = type;
    for (int ranks : {1, 2, 3, 7}) {
      ASSERT_EQ(export_model(folder / "export", ranks, options), no_failures(ranks));
      EXPECT_EQ(read_bytes(folder / "export" / single_file_name), read_bytes(folder / "expected.safetensors")) << ranks;
      EXPECT_EQ(entries_of(folder / "export"), (std::vector<std::string>{"config.json", single_file_name}));
    }
  }
  EXPECT_EQ(read_bytes(folder / "export" / "config.json"), export_options().config_json);
  EXPECT_EQ(entries_of(folder.path()), (std::vector<std::string>{"expected.safetensors", "export"}));
}

TEST(HuggingFaceExport, shards_with_an_index_load_again) {
  const TestFolder folder;
  HuggingFaceExportOptions options = export_options();
  options.max_shard_bytes = 100;  // the embedding has 80 bytes, each w1 and w3 48, the norm 16
  options.generation_config_json = "{}\n";
  std::filesystem::create_directory(folder / "tokenizer");
  const std::string five_ids = R"({"model":{"vocab":{"a":4}}})";
  write_bytes(folder / "tokenizer" / "tokenizer.json", five_ids);
  write_bytes(folder / "tokenizer" / "notes.txt", "not a tokenizer's file");
  options.tokenizer_folder = folder / "tokenizer";
  options.vocabulary = 5;
  ASSERT_EQ(export_model(folder / "runs" / "export" / "", 3, options), no_failures(3));
  EXPECT_EQ(entries_of(folder / "runs" / "export"),
            (std::vector<std::string>{"config.json", "generation_config.json", "model-00001-of-00004.safetensors",
                                      "model-00002-of-00004.safetensors", "model-00003-of-00004.safetensors",
                                      "model-00004-of-00004.safetensors", index_file_name, "tokenizer.json"}));
  EXPECT_EQ(read_bytes(folder / "runs" / "export" / "tokenizer.json"), five_ids);
  expect_loads(folder / "runs" / "export");
  const auto index = nlohmann::json::parse(read_bytes(folder / "runs" / "export" / index_file_name));
  EXPECT_EQ(index["metadata"]["total_size"], 4 * (20 + 48 + 4));
  EXPECT_EQ(index["metadata"]["total_parameters"], 20 + 48 + 4);
  EXPECT_EQ(index["weight_map"]["model.norm.weight"], "model-00004-of-00004.safetensors");
  EXPECT_EQ(index["weight_map"].size(), 6u);
}

// Oracle: the rule, by hand: in order; a tensor that would exceed the limit opens the next file; one larger than the
// limit has a file to itself, which does not end the file that is being filled.
TEST(HuggingFaceExport, shards_are_planned_in_order_up_to_the_limit) {
  const auto plan = [](std::vector<int64_t> sizes, uint64_t limit) {
    std::vector<DiskNames> names;
    for (size_t i = 0; i < sizes.size(); ++i)
      names.push_back({std::to_string(i), {sizes[i]}, {{std::to_string(i), {sizes[i]}}}, {}});
    std::vector<std::string> shards;
    for (const auto& shard : plan_shards(names, StoredDtype::BF16, limit)) {
      shards.emplace_back();
      for (const DiskTensor& tensor : shard) shards.back() += tensor.name;
    }
    return shards;
  };
  using Shards = std::vector<std::string>;
  EXPECT_EQ(plan({1, 2, 3}, 12), (Shards{"012"}));
  EXPECT_EQ(plan({1, 2, 3}, 11), (Shards{"01", "2"}));
  EXPECT_EQ(plan({1, 9, 1, 5, 1}, 12), (Shards{"1", "02", "34"}));
  EXPECT_EQ(plan({9, 9}, 12), (Shards{"0", "1"}));
  EXPECT_EQ(plan({}, 12), (Shards{""}));
}

TEST(HuggingFaceExport, an_older_export_is_replaced_whole) {
  const TestFolder folder;
  HuggingFaceExportOptions options = export_options();
  options.max_shard_bytes = 100;
  ASSERT_EQ(export_model(folder / "export", 2, options), no_failures(2));
  ASSERT_EQ(export_model(folder / "export", 2, export_options()), no_failures(2));
  EXPECT_EQ(entries_of(folder / "export"), (std::vector<std::string>{"config.json", single_file_name}));
  expect_loads(folder / "export");
}

TEST(HuggingFaceExport, an_older_export_is_not_replaced_unless_told) {
  const TestFolder folder;
  HuggingFaceExportOptions options = export_options();
  options.overwrite = Overwrite::refuse;
  ASSERT_EQ(export_model(folder / "export", 2, options), no_failures(2));
  options.config_json = "{}\n";
  EXPECT_THAT(export_model(folder / "export", 2, options), Each(HasSubstr("--overwrite")));
  EXPECT_EQ(read_bytes(folder / "export" / "config.json"), export_options().config_json);
}

TEST(HuggingFaceExport, a_folder_with_anything_else_is_refused_untouched) {
  const TestFolder folder;
  std::filesystem::create_directory(folder / "export");
  write_bytes(folder / "export" / "thesis.tex", "years of work");
  EXPECT_THAT(export_model(folder / "export", 2, export_options()),
              Each(AllOf(HasSubstr("thesis.tex"), HasSubstr("Choose another"))));
  EXPECT_EQ(entries_of(folder / "export"), std::vector<std::string>{"thesis.tex"});
  EXPECT_EQ(entries_of(folder.path()), std::vector<std::string>{"export"});
  write_bytes(folder / "file", "");
  EXPECT_THAT(export_model(folder / "file", 2, export_options()), Each(HasSubstr("something else has that name")));
  HuggingFaceExportOptions options = export_options();
  options.tokenizer_folder = folder / "absent";
  EXPECT_THAT(export_model(folder / "new", 2, options), Each(HasSubstr("cannot copy the tokenizer")));
  options.tokenizer_folder = folder.path();
  options.vocabulary = 5;
  write_bytes(folder / "added_tokens.json", R"({"b":5})");
  EXPECT_THAT(export_model(folder / "new", 2, options),
              Each(HasSubstr("has 6 ids, but the model has embeddings for 5")));
  std::filesystem::remove(folder / "added_tokens.json");
  EXPECT_EQ(entries_of(folder.path()), (std::vector<std::string>{"export", "file"}));
}

TEST(HuggingFaceExport, a_failure_of_one_rank_fails_all_and_leaves_the_older_export) {
  const TestFolder folder;
  ASSERT_EQ(export_model(folder / "export", 3, export_options()), no_failures(3));
  const std::vector<std::string> failures =
      export_model(folder / "export", 3, export_options(), [](int rank, auto& slices) {
        if (rank == 1) slices[0].name = "unknown";
      });
  EXPECT_THAT(failures[0], AllOf(HasSubstr("rank 1: "), HasSubstr("unknown")));
  EXPECT_THAT(failures[1], AllOf(Not(HasSubstr("rank 1: ")), HasSubstr("unknown")));
  EXPECT_THAT(failures[2], AllOf(HasSubstr("rank 1: "), HasSubstr("unknown")));
  expect_loads(folder / "export");
  EXPECT_EQ(entries_of(folder.path()), std::vector<std::string>{"export"});
}

TEST(HuggingFaceExport, missing_elements_are_noticed) {
  const TestFolder folder;
  EXPECT_THAT(export_model(folder / "export", 2, export_options(),
                           [](int rank, auto& slices) {
                             if (rank == 1) slices.pop_back();
                           }),
              Each(HasSubstr("elements exported (70) != elements of the model (72)")));
  EXPECT_TRUE(entries_of(folder.path()).empty());
}

}  // namespace
}  // namespace conclave
