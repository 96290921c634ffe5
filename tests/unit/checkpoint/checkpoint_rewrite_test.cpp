#include "checkpoint/checkpoint_rewrite.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "checkpoint/checkpoint_stream.h"
#include "checkpoint/checkpoint_verify.h"
#include "checkpoint/hugging_face_files.h"
#include "checkpoint/safetensors_writer.h"
#include "checkpoint/tensor_comparison.h"
#include "thread_world.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

const BytesDone nobody = [](uint64_t) {};

struct Whole {
  std::string name;
  at::Tensor values;
};

// A checkpoint's tensors; other values for every `version`.
std::vector<Whole> tensors(int version) {
  std::vector<Whole> all;
  for (const char* kind : {"parameter", "exp_avg", "exp_avg_sq"}) {
    const auto sizes = [&](const char* name, std::vector<int64_t> shape) {
      const int64_t count = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
      const at::Tensor values = (at::arange(count).to(at::kFloat) * 0.37f + static_cast<float>(all.size())) *
                                (1.0f + static_cast<float>(version) / 3);
      all.push_back({fmt::format("{}/{}", kind, name), values.view(shape)});
    };
    sizes("embed", {11, 3});
    sizes("none", {0, 4});
    sizes("norm", {7});
  }
  return all;
}

CheckpointState state_at(int64_t step) {
  CheckpointState state;
  state.step = step;
  state.samples = 8 * step;
  state.seed = 5;
  return state;
}

// Saved by ranks, as training does: step-<step> in `folder`. Small blocks, so that every tensor has several.
std::filesystem::path save(const TestFolder& folder, int64_t step, int ranks, int version) {
  EXPECT_EQ(run_ranks(ranks,
                      [&](Communicator& world) {
                        std::vector<TensorSlice> slices;
                        for (const Whole& tensor : tensors(version)) {
                          const int64_t numel = tensor.values.numel(), begin = numel * world.rank() / ranks;
                          const int64_t end = numel * (world.rank() + 1) / ranks;
                          slices.push_back({tensor.name, tensor.values.sizes().vec(), begin,
                                            tensor.values.view(-1).narrow(0, begin, end - begin)});
                        }
                        save_checkpoint(folder.path(), state_at(step), slices, world, 64);
                      }),
            no_failures(ranks));
  return folder / fmt::format("step-{:08}", step);
}

at::Tensor load(const std::filesystem::path& checkpoint, const std::string& name, const at::Tensor& like) {
  const TensorSlice slice{name, like.sizes().vec(), 0, at::full({like.numel()}, -1.0f)};
  CheckpointReader(checkpoint).load({&slice, 1});
  return slice.data.view(like.sizes());
}

void expect_holds(const std::filesystem::path& checkpoint, int version) {
  for (const Whole& tensor : tensors(version))
    EXPECT_TRUE(load(checkpoint, tensor.name, tensor.values).equal(tensor.values)) << tensor.name;
}

std::vector<std::string> entries_of(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

void flip_bit(const std::filesystem::path& path, size_t place) {
  std::string bytes = read_bytes(path);
  bytes.at(place) = static_cast<char>(bytes.at(place) ^ 4);
  write_bytes(path, bytes);
}

// Oracle: CheckpointReader, which hashes each block whole, on what was appended in parts that fit neither blocks nor
// files.
TEST(CheckpointStream, takes_elements_in_any_parts) {
  for (int64_t files : {1, 2, 3, 7, 1000}) {
    for (int64_t part : {1, 16, 1000}) {
      if (files > 3 && part != 16) continue;  // every file is flushed to the disk, which takes its time
      const TestFolder folder;
      std::vector<SafetensorsHeader::Entry> entries;
      for (const Whole& tensor : tensors(0))
        entries.push_back({tensor.name, StoredDtype::F32, tensor.values.sizes().vec()});
      CheckpointStream out(folder / "out", state_at(3), entries, files, Overwrite::refuse, 64);
      for (const Whole& tensor : tensors(0)) {
        const at::Tensor flat = tensor.values.reshape({-1});
        for (int64_t begin = 0; begin < flat.numel(); begin += part)
          out.append(flat.narrow(0, begin, std::min(part, flat.numel() - begin)));
      }
      EXPECT_EQ(entries_of(folder.path()), std::vector<std::string>{".tmp-out"});
      out.finish();
      EXPECT_EQ(entries_of(folder.path()), std::vector<std::string>{"out"});
      expect_holds(folder / "out", 0);
      EXPECT_TRUE(verify_checkpoint(folder / "out", nobody).flaws.empty());
      EXPECT_EQ(CheckpointReader(folder / "out").state(), state_at(3));
    }
  }
}

// 120 elements: files of equal size up to one element, which a cut inside a tensor cannot divide.
TEST(CheckpointRewrite, reshards_into_files_of_equal_size) {
  const TestFolder folder;
  const auto checkpoint = save(folder, 12, 3, 1);
  for (int64_t files : {1, 2, 5, 8}) {
    CheckpointReader reader(checkpoint);
    uint64_t seen = 0;
    reshard_checkpoint(reader, folder / "out", files, Overwrite::replace, [&](uint64_t bytes) { seen += bytes; });
    EXPECT_EQ(seen, 120u * 4);
    EXPECT_EQ(seen, bytes_of_tensors(reader.manifest()));
    EXPECT_EQ(entries_of(folder / "out").size(), static_cast<size_t>(files) + 1);
    expect_holds(folder / "out", 1);
    EXPECT_EQ(CheckpointReader(folder / "out").state(), state_at(12));
    std::map<std::string, int64_t> elements;
    const CheckpointReader resharded(folder / "out");
    for (const auto& [name, tensor] : resharded.manifest().tensors) {
      for (const Piece& piece : tensor.pieces) elements[piece.file] += piece.end - piece.begin;
    }
    for (const auto& [file, count] : elements) EXPECT_NEAR(static_cast<double>(count), 120.0 / files, 1.0) << file;
  }
}

TEST(CheckpointRewrite, damage_met_on_the_way_leaves_nothing) {
  const TestFolder folder;
  const auto checkpoint = save(folder, 12, 2, 1);
  const auto intact = save(folder, 13, 2, 2);
  const std::string file = "rank-00001.safetensors";
  flip_bit(checkpoint / file, std::filesystem::file_size(checkpoint / file) - 1);
  write_bytes(folder / "latest", "step-00000013\n");
  const auto before = entries_of(folder.path());
  const auto refused = [&](const std::function<void()>& work) {
    EXPECT_THAT(message_of<UserError>(work), AllOf(HasSubstr(file), HasSubstr("hash")));
    EXPECT_EQ(entries_of(folder.path()), before);
  };
  refused([&] {
    CheckpointReader reader(checkpoint);
    reshard_checkpoint(reader, folder / "out", 2, Overwrite::refuse, nobody);
  });
  refused([&] { average_checkpoints(std::vector{intact, checkpoint}, folder / "out", Overwrite::refuse, nobody); });
  // What would have been replaced is there still.
  refused([&] {
    CheckpointReader reader(checkpoint);
    reshard_checkpoint(reader, intact, 2, Overwrite::replace, nobody);
  });
  expect_holds(intact, 2);
}

TEST(CheckpointRewrite, an_existing_folder_is_not_replaced_unless_told) {
  const TestFolder folder;
  const auto checkpoint = save(folder, 12, 2, 1);
  const auto other = save(folder, 13, 2, 2);
  const auto reshard = [&](const std::filesystem::path& to, Overwrite overwrite) {
    return message_of<UserError>([&] {
      CheckpointReader reader(checkpoint);
      reshard_checkpoint(reader, to, 1, overwrite, nobody);
    });
  };
  EXPECT_THAT(reshard(other, Overwrite::refuse), AllOf(HasSubstr("step-00000013"), HasSubstr("--overwrite")));
  expect_holds(other, 2);
  EXPECT_EQ(reshard(other, Overwrite::replace), "");
  expect_holds(other, 1);
  std::filesystem::create_directory(folder / "home");
  write_bytes(folder / "home" / "thesis.tex", "years of work");
  EXPECT_THAT(reshard(folder / "home", Overwrite::replace), HasSubstr("thesis.tex"));
  EXPECT_EQ(read_bytes(folder / "home" / "thesis.tex"), "years of work");
}

// Oracle: the definition, in plain floats: the sum from the first to the last, divided by their number. Bit for bit,
// for that is what is promised.
TEST(CheckpointRewrite, average_is_the_mean_of_parameters_and_the_last_ones_state) {
  const TestFolder folder;
  const std::vector<std::filesystem::path> from = {save(folder, 10, 1, 0), save(folder, 20, 3, 1),
                                                   save(folder, 30, 2, 5)};
  average_checkpoints(from, folder / "mean", Overwrite::refuse, nobody);
  EXPECT_EQ(CheckpointReader(folder / "mean").state(), state_at(30));
  const auto versions = {tensors(0), tensors(1), tensors(5)};
  for (size_t i = 0; i < tensors(0).size(); ++i) {
    const Whole last = tensors(5)[i];
    at::Tensor expected = last.values.clone();
    if (last.name.starts_with("parameter/")) {
      for (int64_t j = 0; j < expected.numel(); ++j) {
        float sum = 0;
        bool first = true;
        for (const auto& version : versions) {
          const float value = version[i].values.data_ptr<float>()[j];
          sum = first ? value : sum + value;
          first = false;
        }
        expected.data_ptr<float>()[j] = sum / 3.0f;
      }
    }
    EXPECT_TRUE(load(folder / "mean", last.name, expected).equal(expected)) << last.name;
  }
}

TEST(CheckpointRewrite, checkpoints_of_other_models_have_no_average) {
  const TestFolder folder;
  const auto first = save(folder, 10, 1, 0);
  std::vector<SafetensorsHeader::Entry> entries = {{"parameter/norm", StoredDtype::F32, {7}}};
  {
    CheckpointStream out(folder / "second", state_at(1), entries, 1);
    out.append(at::ones({7}));
    out.finish();
  }
  EXPECT_THAT(message_of<UserError>([&] {
                average_checkpoints(std::vector{first, folder / "second"}, folder / "mean", Overwrite::refuse, nobody);
              }),
              AllOf(HasSubstr("step-00000010"), HasSubstr("second"), HasSubstr("only the first has tensor")));
  EXPECT_FALSE(std::filesystem::exists(folder / "mean"));
}

std::vector<std::string> flaws_of(const std::filesystem::path& checkpoint) {
  std::vector<std::string> texts;
  for (const CheckpointFlaw& flaw : verify_checkpoint(checkpoint, nobody).flaws)
    texts.push_back(fmt::format("{}|{}|{}", flaw.file, flaw.tensor, flaw.reason));
  return texts;
}

TEST(CheckpointVerify, reads_every_byte_once) {
  const TestFolder folder;
  const auto checkpoint = save(folder, 1, 3, 0);
  uint64_t seen = 0;
  const CheckpointVerdict verdict = verify_checkpoint(checkpoint, [&](uint64_t bytes) { seen += bytes; });
  EXPECT_TRUE(verdict.flaws.empty());
  EXPECT_EQ(verdict.bytes, 120u * 4);
  EXPECT_EQ(seen, 120u * 4);
  EXPECT_EQ(verdict.tensors, 9u);
  EXPECT_EQ(verdict.files, 3u);
}

TEST(CheckpointVerify, names_every_flaw_not_only_the_first) {
  const TestFolder folder;
  const auto checkpoint = save(folder, 1, 4, 0);
  const SafetensorsReader second(checkpoint / "rank-00001.safetensors");
  for (const StoredTensor& tensor : second.tensors()) flip_bit(checkpoint / "rank-00001.safetensors", tensor.begin);
  std::filesystem::remove(checkpoint / "rank-00002.safetensors");
  std::filesystem::resize_file(checkpoint / "rank-00003.safetensors",
                               std::filesystem::file_size(checkpoint / "rank-00003.safetensors") - 1);
  const auto flaws = flaws_of(checkpoint);
  ASSERT_EQ(flaws.size(), 8u);
  for (size_t i = 0; i < 6; ++i)
    EXPECT_THAT(flaws[i], AllOf(HasSubstr("rank-00001.safetensors|"), HasSubstr("1 of "), HasSubstr("hash")));
  EXPECT_THAT(flaws, testing::Contains(HasSubstr("rank-00001.safetensors|parameter/embed|")));
  EXPECT_THAT(flaws, testing::Contains(HasSubstr("rank-00001.safetensors|exp_avg/norm|")));
  EXPECT_THAT(flaws[6], AllOf(HasSubstr("rank-00002.safetensors||"), HasSubstr("No such file")));
  EXPECT_THAT(flaws[7], HasSubstr("rank-00003.safetensors||"));
}

TEST(CheckpointVerify, exchanged_files_and_damaged_manifests_are_flaws) {
  const TestFolder folder;
  const auto checkpoint = save(folder, 1, 2, 0);
  const std::string first = read_bytes(checkpoint / "rank-00000.safetensors");
  write_bytes(checkpoint / "rank-00000.safetensors", read_bytes(checkpoint / "rank-00001.safetensors"));
  write_bytes(checkpoint / "rank-00001.safetensors", first);
  EXPECT_FALSE(flaws_of(checkpoint).empty());
  write_bytes(checkpoint / manifest_file_name, "{}");
  EXPECT_THAT(flaws_of(checkpoint), testing::ElementsAre(HasSubstr("manifest.json||")));
  EXPECT_THAT(message_of<UserError>([&] { flaws_of(folder / "absent"); }), HasSubstr("absent"));
}

FiledTensors filed(const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
  FiledTensors filed;
  for (const auto& [name, tensor] : tensors) {
    filed[name] = {stored_dtype_of(tensor.scalar_type()), tensor.sizes().vec(),
                   [tensor = tensor](int64_t begin, const at::Tensor& out) {
                     out.copy_(tensor.reshape({-1}).narrow(0, begin, out.numel()));
                   }};
  }
  return filed;
}

// Oracle: differences chosen so that they and their mean are exact.
TEST(TensorComparison, says_how_each_tensor_differs) {
  const int64_t large = block_bytes / 4 + 100;  // two blocks
  const at::Tensor base = at::arange(large).remainder(512).to(at::kFloat);
  at::Tensor moved = base.clone();
  moved[3] += 0.5;
  moved[large - 1] -= 2.0;
  at::Tensor nan = base.clone();
  nan[large - 2] = std::numeric_limits<float>::quiet_NaN();
  const auto first = filed(
      {{"a", base}, {"b", base}, {"c", base}, {"d", base}, {"e", base}, {"f", nan}, {"g", nan}, {"h", at::zeros({0})}});
  const auto second = filed({{"a", base},
                             {"b", moved},
                             {"c", base.view({large, 1})},
                             {"e", base.to(at::kBFloat16)},
                             {"f", nan},
                             {"g", base},
                             {"h", at::zeros({0})},
                             {"i", base}});
  const auto differences = compare(first, second, nobody);
  ASSERT_EQ(differences.size(), 9u);
  using enum Comparison;
  const std::vector<Comparison> expected = {equal, differs, reshaped, only_in_first, differs,
                                            equal, differs, equal,    only_in_second};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_EQ(differences[i].result, expected[i]) << differences[i].name;
  EXPECT_EQ(differences[1].unequal, 2);
  EXPECT_EQ(differences[1].largest, 2.0);
  EXPECT_EQ(differences[1].mean, 2.5 / static_cast<double>(large));
  EXPECT_EQ(differences[4].unequal, base.ne(base.to(at::kBFloat16).to(at::kFloat)).sum().item<int64_t>());
  EXPECT_TRUE(std::isnan(differences[6].largest));
  EXPECT_EQ(differences[6].unequal, 1);
}

}  // namespace
}  // namespace conclave
