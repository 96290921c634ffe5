// Quantized weights are read as what they stand for. Oracle: the formulas of Transformers 5 (integrations/mxfp4.py,
// integrations/finegrained_fp8.py) on whole tensors by ATen. Exact: each value is one product in fp32, or a power of
// two times a number of two bits.
#include "checkpoint/quantized_tensor.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "checkpoint/hugging_face_reader.h"
#include "checkpoint/safetensors_writer.h"
#include "thread_world.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;

constexpr uint64_t seed = 7;

DiskNames one(std::vector<int64_t> shape) {
  return {"ours", shape, {{"mlp.weight", shape}}, {}};
}

// What every rank of several reads, put together; slices are cut anywhere.
at::Tensor loaded(const std::filesystem::path& folder, const DiskNames& names, int64_t ranks) {
  const std::vector<DiskNames> model{names};
  const HuggingFaceReader reader(folder, model);
  const int64_t count = checked_numel(names.shape).value();
  at::Tensor all = at::full({count}, -1e30f);
  for (int64_t rank = 0; rank < ranks; ++rank) {
    const int64_t begin = count * rank / ranks, end = count * (rank + 1) / ranks;
    reader.load({names.parameter, names.shape, begin, all.narrow(0, begin, end - begin)});
  }
  return all.view(names.shape);
}

std::string refusal(const std::filesystem::path& folder, const DiskNames& names) {
  return message_of<UserError>([&] { loaded(folder, names, 1); });
}

struct Fp8Case {
  at::Tensor weight, scale, expected;
};

// Squares at the right and lower edge may be cut off.
Fp8Case make_fp8(const std::vector<int64_t>& shape, at::ScalarType scale_type) {
  Fp8Case c;
  c.weight = at::randn(shape).to(at::kFloat8_e4m3fn);
  std::vector<int64_t> grid = shape;
  for (size_t i = grid.size() - 2; i < grid.size(); ++i) grid[i] = (grid[i] + 127) / 128;
  at::Tensor scale = at::rand(grid) + 0.1;
  if (scale_type == at::kByte) {
    c.scale = at::randint(100, 140, grid, at::kByte);
    scale = at::exp2(c.scale.to(at::kFloat) - 127);
  } else {
    c.scale = scale.to(scale_type);
    scale = c.scale.to(at::kFloat);
  }
  const int64_t dims = static_cast<int64_t>(shape.size());
  at::Tensor spread = scale.repeat_interleave(128, dims - 2).repeat_interleave(128, dims - 1);
  spread = spread.narrow(dims - 2, 0, shape[dims - 2]).narrow(dims - 1, 0, shape[dims - 1]);
  c.expected = c.weight.to(at::kFloat) * spread;
  return c;
}

TEST(Fp8Weights, are_multiplied_by_the_scales_of_their_squares) {
  at::manual_seed(seed);
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{256, 384}, {64, 64}, {1, 1}, {130, 257}, {576, 100}, {3, 200, 150}})
    for (const at::ScalarType scale_type : {at::kFloat, at::kBFloat16, at::kByte})
      for (const int64_t ranks : {1, 2, 3, 7}) {
        SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << at::IntArrayRef(shape) << ", " << ranks
                                        << " ranks");
        const Fp8Case c = make_fp8(shape, scale_type);
        const TestFolder folder;
        write_safetensors(folder / single_file_name,
                          NamedTensors{{"mlp.weight", c.weight}, {"mlp.weight_scale_inv", c.scale}});
        EXPECT_TRUE(loaded(folder.path(), one(shape), ranks).equal(c.expected));
      }
}

TEST(Fp8Weights, refuse_scales_that_do_not_fit_or_are_no_numbers) {
  at::manual_seed(seed);
  const std::vector<int64_t> shape = {200, 150};
  const Fp8Case good = make_fp8(shape, at::kFloat);
  const auto refused = [&](const NamedTensors& tensors, const DiskNames& names = one({200, 150})) {
    const TestFolder folder;
    write_safetensors(folder / single_file_name, tensors);
    return refusal(folder.path(), names);
  };
  EXPECT_THAT(refused({{"mlp.weight", good.weight}, {"mlp.weight_scale_inv", at::ones({2, 1})}}),
              AllOf(HasSubstr("\"mlp.weight_scale_inv\""), HasSubstr("[2, 1]"), HasSubstr("[2, 2]")));
  EXPECT_THAT(refused({{"mlp.weight", good.weight.to(at::kBFloat16)}, {"mlp.weight_scale_inv", good.scale}}),
              AllOf(HasSubstr("\"mlp.weight\""), HasSubstr("BF16"), HasSubstr("F8_E4M3")));
  EXPECT_THAT(refused({{"mlp.weight", good.weight}, {"mlp.weight_scale_inv", good.scale.to(at::kLong)}}),
              HasSubstr("I64"));
  for (const float wrong : {NAN, INFINITY, -1.0f}) {
    at::Tensor scale = good.scale.clone();
    scale[1][0] = wrong;
    EXPECT_THAT(refused({{"mlp.weight", good.weight}, {"mlp.weight_scale_inv", scale}}),
                AllOf(HasSubstr("\"mlp.weight_scale_inv\""), HasSubstr("at place 2"), HasSubstr("damaged")));
  }
  // Scales of others, but not of this one; scales of nobody.
  DiskNames two = one(shape);
  two.shape = {400, 150};
  two.parts.push_back({"mlp.other", shape});
  EXPECT_THAT(
      refused({{"mlp.weight", good.weight}, {"mlp.weight_scale_inv", good.scale}, {"mlp.other", good.weight}}, two),
      AllOf(HasSubstr("\"mlp.other\""), HasSubstr("\"mlp.other_scale_inv\"")));
  EXPECT_THAT(refused({{"mlp.weight", good.weight.to(at::kFloat)}, {"stray_scale_inv", good.scale}}),
              HasSubstr("\"stray_scale_inv\""));
  EXPECT_THAT(
      refused({{"mlp.weight", at::zeros({3, 3}, at::kFloat8_e4m3fn)}, {"mlp.weight_scale_inv", at::ones({1, 1})}}),
      AllOf(HasSubstr("[3, 3]"), HasSubstr("[200, 150]")));
}

struct Mxfp4Case {
  at::Tensor blocks, scales, expected;
};

// As convert_moe_packed_tensors does it: [E,N,M/32,16] and [E,N,M/32] give [E,M,N].
Mxfp4Case make_mxfp4(int64_t experts, int64_t rows, int64_t columns) {
  Mxfp4Case c{at::randint(0, 256, {experts, columns, rows / 32, 16}, at::kByte),
              at::randint(0, 250, {experts, columns, rows / 32}, at::kByte),
              {}};
  const at::Tensor table =
      at::tensor({0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0}, at::kDouble);
  const at::Tensor low = table.index({c.blocks.bitwise_and(15).to(at::kLong)});
  const at::Tensor high = table.index({c.blocks.bitwise_right_shift(4).to(at::kLong)});
  const at::Tensor power = at::exp2(c.scales.to(at::kDouble) - 127).unsqueeze(3);
  const at::Tensor numbers = at::stack({low, high}, 4).view({experts, columns, rows / 32, 32}) * power;
  c.expected = numbers.view({experts, columns, rows}).transpose(1, 2).contiguous().to(at::kFloat);
  return c;
}

void write_mxfp4(const std::filesystem::path& folder, const at::Tensor& blocks, const at::Tensor& scales) {
  write_safetensors(folder / single_file_name,
                    NamedTensors{{"mlp.weight_blocks", blocks}, {"mlp.weight_scales", scales}});
}

TEST(Mxfp4Weights, are_unpacked_scaled_and_transposed) {
  at::manual_seed(seed);
  for (const auto& [experts, rows, columns] :
       {std::tuple<int64_t, int64_t, int64_t>{1, 32, 1}, {2, 64, 17}, {3, 96, 40}, {4, 32, 3}, {2, 2880, 3000}})
    for (const int64_t ranks : {1, 2, 3, 7}) {
      if (rows == 2880 && ranks != 3) continue;  // more than a block of stored rows
      SCOPED_TRACE(testing::Message() << "seed " << seed << ": " << experts << " x " << rows << " x " << columns << ", "
                                      << ranks << " ranks");
      const Mxfp4Case c = make_mxfp4(experts, rows, columns);
      const TestFolder folder;
      write_mxfp4(folder.path(), c.blocks, c.scales);
      const at::Tensor found = loaded(folder.path(), one({experts, rows, columns}), ranks);
      EXPECT_TRUE(found.view(at::kInt).equal(c.expected.view(at::kInt)));  // -0, too
    }
}

TEST(Mxfp4Weights, refuse_scales_that_do_not_fit_or_are_no_numbers) {
  at::manual_seed(seed);
  const Mxfp4Case good = make_mxfp4(2, 64, 5);
  const auto refused = [&](const at::Tensor& blocks, const at::Tensor& scales, std::vector<int64_t> shape) {
    const TestFolder folder;
    write_mxfp4(folder.path(), blocks, scales);
    return refusal(folder.path(), one(std::move(shape)));
  };
  EXPECT_THAT(refused(good.blocks, good.scales.narrow(1, 0, 4).contiguous(), {2, 64, 5}),
              AllOf(HasSubstr("\"mlp.weight_scales\""), HasSubstr("[2, 4, 2]"), HasSubstr("[2, 5, 2]")));
  EXPECT_THAT(refused(good.blocks.to(at::kFloat), good.scales, {2, 64, 5}),
              AllOf(HasSubstr("\"mlp.weight_blocks\""), HasSubstr("F32"), HasSubstr("U8")));
  EXPECT_THAT(refused(good.blocks, good.scales, {2, 64, 6}), HasSubstr("[2, 6, 2, 16]"));
  EXPECT_THAT(refused(good.blocks, good.scales, {2, 60, 5}), HasSubstr("blocks of 32"));
  at::Tensor scales = good.scales.clone();
  scales[1][2][1] = 255;
  EXPECT_THAT(refused(good.blocks, scales, {2, 64, 5}),
              AllOf(HasSubstr("\"mlp.weight_scales\""), HasSubstr("at place 15"), HasSubstr("damaged")));
  const TestFolder folder;
  write_safetensors(folder / single_file_name, NamedTensors{{"mlp.weight_blocks", good.blocks}});
  EXPECT_THAT(refusal(folder.path(), one({2, 64, 5})), HasSubstr("\"mlp.weight_scales\""));
}

}  // namespace
}  // namespace conclave
