#include <ATen/ATen.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <random>
#include <tuple>

#include "base/error.h"
#include "checkpoint/safetensors_reader.h"
#include "checkpoint/safetensors_writer.h"
#include "thread_world.h"

namespace conclave {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// safetensors.torch.save of version 0.8.0, metadata {"format": "pt"}, of the tensors that golden_tensors() makes.
std::string golden_bytes() {
  const std::string hex =
      "a8020000000000007b225f5f6d657461646174615f5f223a7b22666f726d6174223a227074227d2c2269223a7b226474797065223a2249"
      "3634222c227368617065223a5b325d2c22646174615f6f666673657473223a5b302c31365d7d2c2264223a7b226474797065223a224636"
      "34222c227368617065223a5b315d2c22646174615f6f666673657473223a5b31362c32345d7d2c2261223a7b226474797065223a224633"
      "32222c227368617065223a5b5d2c22646174615f6f666673657473223a5b32342c32385d7d2c2262223a7b226474797065223a22463332"
      "222c227368617065223a5b322c335d2c22646174615f6f666673657473223a5b32382c35325d7d2c22656d707479223a7b226474797065"
      "223a22463332222c227368617065223a5b302c345d2c22646174615f6f666673657473223a5b35322c35325d7d2c226e61c3af7665205c"
      "2271756f7465645c225c6e5c7530303031223a7b226474797065223a22493332222c227368617065223a5b315d2c22646174615f6f6666"
      "73657473223a5b35322c35365d7d2c227a223a7b226474797065223a2242463136222c227368617065223a5b335d2c22646174615f6f66"
      "6673657473223a5b35362c36325d7d2c2268223a7b226474797065223a22463136222c227368617065223a5b325d2c22646174615f6f66"
      "6673657473223a5b36322c36365d7d2c226638223a7b226474797065223a2246385f45344d33222c227368617065223a5b325d2c226461"
      "74615f6f666673657473223a5b36362c36385d7d2c2275223a7b226474797065223a225538222c227368617065223a5b325d2c22646174"
      "615f6f666673657473223a5b36382c37305d7d2c22666c616773223a7b226474797065223a22424f4f4c222c227368617065223a5b335d"
      "2c22646174615f6f666673657473223a5b37302c37335d7d7d202020ffffffffffffffff00000000000100009a9999999999b93f000050"
      "40000080bf000000bf000000000000003f0000803f0000c03f07000000803f20c0003c0038fffb38fe00ff010001";
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

std::vector<std::pair<std::string, at::Tensor>> golden_tensors() {
  return {
      {"b", at::tensor({-1.0f, -0.5f, 0.0f, 0.5f, 1.0f, 1.5f}).view({2, 3})},
      {"a", at::scalar_tensor(3.25, at::kFloat)},
      {"z", at::tensor({1.0f, -2.5f, 0.0078125f}).to(at::kBFloat16)},
      {"i", at::tensor({int64_t{-1}, int64_t{1} << 40}, at::kLong)},
      {"d", at::tensor({0.1}, at::kDouble)},
      {"h", at::tensor({0.5f, -65504.0f}).to(at::kHalf)},
      {"empty", at::zeros({0, 4})},
      {"flags", at::tensor({1, 0, 1}).to(at::kBool)},
      {"u", at::tensor({0, 255}).to(at::kByte)},
      {"f8", at::tensor({1.0f, -448.0f}).to(at::kFloat8_e4m3fn)},
      {"na\xc3\xafve \"quoted\"\n\x01", at::tensor({7}, at::kInt)},
  };
}

std::string file_of(const std::string& header, const std::string& data = "") {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return bytes + header + data;
}

// Oracle: the format's own Python package.
TEST(Safetensors, writes_the_bytes_of_the_reference_writer) {
  const TestFolder folder;
  write_safetensors(folder / "model.safetensors", golden_tensors());
  EXPECT_EQ(read_bytes(folder / "model.safetensors"), golden_bytes());
}

// Oracle: the tensors that the Python package was given.
TEST(Safetensors, reads_the_reference_writers_file) {
  const TestFolder folder;
  write_bytes(folder / "model.safetensors", golden_bytes());
  const SafetensorsReader reader(folder / "model.safetensors");
  EXPECT_EQ(reader.metadata(), (Metadata{{"format", "pt"}}));
  EXPECT_EQ(reader.tensors().size(), golden_tensors().size());
  for (const auto& [name, expected] : golden_tensors()) {
    const at::Tensor read = reader.read_whole(name);
    EXPECT_EQ(read.scalar_type(), expected.scalar_type()) << name;
    EXPECT_EQ(read.sizes(), expected.sizes()) << name;
    if (expected.nbytes() == 0) continue;
    EXPECT_EQ(std::memcmp(read.data_ptr(), expected.data_ptr(), expected.nbytes()), 0) << name;
  }
  EXPECT_EQ(reader.find("absent"), nullptr);
  EXPECT_THAT(message_of<UserError>([&] { reader.at("absent"); }),
              AllOf(HasSubstr("model.safetensors"), HasSubstr("absent")));
}

TEST(Safetensors, a_file_without_metadata_or_tensors_has_two_bytes_of_json_padded_to_eight) {
  const TestFolder folder;
  write_safetensors(folder / "empty.safetensors", {}, {});
  EXPECT_EQ(read_bytes(folder / "empty.safetensors"), file_of("{}      "));  // the reference's own test_empty
}

struct Form {
  std::string what;
  std::string bytes;    // of the file
  std::string message;  // part of the refusal; empty: accepted
};
void PrintTo(const Form& form, std::ostream* out) {
  *out << form.what;
}

std::string one(const std::string& description) {
  return fmt::format("{{\"t\":{}}}", description);
}

const std::vector<Form>& forms() {
  static const std::vector<Form> all = {
      // Accepted.
      {"no_tensor", file_of("{}"), ""},
      {"trailing_white_space", file_of("{} \n\t\r "), ""},
      {"leading_white_space", file_of(" \n\t\r {}"), ""},
      {"metadata_null", file_of(R"({"__metadata__":null})"), ""},
      {"unknown_field", file_of(one(R"({"dtype":"U8","order":"F","shape":[0],"data_offsets":[0,0]})")), ""},
      {"unknown_fields_of_every_kind",
       file_of(one(R"({"a":1,"a":-1,"b":1.5,"c":null,"d":[true,{"dtype":["x"]}],"dtype":"U8","e":{"shape":[[1]],)"
                   R"("f":{}},"shape":[1],"data_offsets":[0,1],"g":[]})"),
               "x"),
       ""},
      {"unknown_field_of_the_greatest_depth",
       file_of(one(fmt::format(R"({{"x":{}{},"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", std::string(125, '['),
                               std::string(125, ']')))),
       ""},
      {"scalar", file_of(one(R"({"dtype":"F32","shape":[],"data_offsets":[0,4]})"), "abcd"), ""},
      {"zero_size_dim", file_of(one(R"({"dtype":"F32","shape":[2,0,9223372036854775807],"data_offsets":[0,0]})")), ""},
      {"fields_in_any_order", file_of(one(R"({"data_offsets":[0,2],"shape":[2],"dtype":"I8"})"), "ab"), ""},
      {"tensors_in_any_order",
       file_of(
           R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
           "abc"),
       ""},
      {"empty_tensor_between",
       file_of(
           R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"e":{"dtype":"U8","shape":[0],"data_offsets":[1,1]},"a":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
           "abc"),
       ""},
      {"two_elements_in_a_byte", file_of(one(R"({"dtype":"F4","shape":[2,3],"data_offsets":[0,3]})"), "abc"), ""},
      {"metadata_only", file_of(R"({"__metadata__":{"a":"b","c":""}})"), ""},
      {"escaped_name", file_of(R"({"\u00e4\n":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"), ""},
      // The file around the header.
      {"empty_file", "", "it has 0 bytes"},
      {"seven_bytes", std::string("\x02\0\0\0\0\0\0", 7), "it has 7 bytes"},
      {"header_longer_than_file", std::string("\x03\0\0\0\0\0\0\0{}", 10),
       "said to have 3 bytes, but the file has only 10"},
      {"header_over_the_limit", std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10),
       "said to have 100000001 bytes, more than"},
      {"header_length_of_all_ones", std::string(8, '\xff') + "{}",
       "said to have 18446744073709551615 bytes, more than"},
      {"no_header", file_of(""), "does not begin with a brace"},
      // Text.
      {"white_space_alone", file_of(" \n "), "does not begin with a brace"},
      {"zero_byte_before", file_of(std::string("\0{}", 3)), "does not begin with a brace"},
      {"byte_order_mark", file_of("\xef\xbb\xbf{}"), "does not begin with a brace"},
      {"array", file_of("[]"), "does not begin with a brace"},
      {"unclosed", file_of("{"), "not valid JSON"},
      {"second_value", file_of("{}{}"), "not valid JSON"},
      {"comment", file_of("{}//"), "not valid JSON"},
      {"trailing_comma", file_of(R"({"__metadata__":{"a":"b",}})"), "not valid JSON"},
      {"single_quotes", file_of("{'a':1}"), "not valid JSON"},
      {"zero_byte_after", file_of(std::string("{}\0", 3)), "zero byte"},
      {"zero_byte_and_garbage", file_of(std::string("{}\0garbage", 10)), "zero byte"},
      {"control_character_in_string", file_of("{\"a\nb\":{}}"), "not valid JSON"},
      {"lone_continuation_byte", file_of("{\"\x80\":{}}"), "not valid JSON"},
      {"overlong_utf8", file_of("{\"\xc0\xaf\":{}}"), "not valid JSON"},
      {"surrogate_in_utf8", file_of("{\"\xed\xa0\x80\":{}}"), "not valid JSON"},
      {"cut_utf8", file_of("{\"\xe2\x82"), "not valid JSON"},
      {"lone_escaped_surrogate", file_of(R"({"\ud800":{}})"), "not valid JSON"},
      {"deeply_nested", file_of(std::string(100000, '{')), "not valid JSON"},
      {"deeply_nested_arrays", file_of(fmt::format("{{\"t\":{}", std::string(100000, '['))),
       "has an array where none is expected"},
      // Keys.
      {"tensor_twice",
       file_of(
           R"({"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
       "\"t\" is described twice"},
      {"tensor_twice_by_escape",
       file_of(
           R"({"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\u0074":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})"),
       "\"t\" is described twice"},
      {"metadata_twice", file_of(R"({"__metadata__":{},"__metadata__":{}})"), "\"__metadata__\" twice"},
      {"metadata_key_twice", file_of(R"({"__metadata__":{"a":"b","a":"b"}})"), "key \"a\" twice"},
      {"field_twice", file_of(one(R"({"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]})")),
       "\"dtype\" twice"},
      {"shape_twice", file_of(one(R"({"dtype":"U8","shape":[2],"shape":[2],"data_offsets":[0,0]})")),
       "\"shape\" twice"},
      {"unknown_field_of_a_greater_depth",
       file_of(one(fmt::format(R"({{"x":{}{},"dtype":"U8","shape":[0],"data_offsets":[0,0]}})", std::string(126, '['),
                               std::string(126, ']')))),
       "nested deeper than 127"},
      {"unknown_field_of_a_bottomless_depth", file_of(fmt::format("{{\"t\":{{\"x\":{}", std::string(100000, '['))),
       "nested deeper than 127"},
      {"unknown_field_cut", file_of(R"({"t":{"x":[1)"), "not valid JSON"},
      {"unknown_fields_alone", file_of(one(R"({"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})")),
       "has no dtype"},
      {"no_dtype", file_of(one(R"({"shape":[0],"data_offsets":[0,0]})")), "has no dtype"},
      {"no_shape", file_of(one(R"({"dtype":"U8","data_offsets":[0,0]})")), "has no shape"},
      {"no_offsets", file_of(one(R"({"dtype":"U8","shape":[0]})")), "has no data_offsets"},
      {"empty_description", file_of(one("{}")), "has no dtype"},
      // Kinds of values.
      {"metadata_number", file_of(R"({"__metadata__":{"a":1}})"), "map strings to strings, but has a number"},
      {"metadata_of_nulls", file_of(R"({"__metadata__":{"a":null}})"), "map strings to strings, but has null"},
      {"tensor_is_null", file_of(one("null")), "has null where none"},
      {"metadata_nested", file_of(R"({"__metadata__":{"a":{}}})"), "map strings to strings, but has an object"},
      {"metadata_array", file_of(R"({"__metadata__":["a"]})"), "map strings to strings, but has an array"},
      {"metadata_bool", file_of(R"({"__metadata__":{"a":true}})"), "map strings to strings, but has true or false"},
      {"tensor_is_string", file_of(one("\"F32\"")), "has a string where none"},
      {"tensor_is_array", file_of(one(R"(["U8",[0],[0,0]])")), "has an array where none"},
      {"dtype_is_number", file_of(one(R"({"dtype":1,"shape":[0],"data_offsets":[0,0]})")), "has a number where none"},
      {"unknown_dtype", file_of(one(R"({"dtype":"F31","shape":[0],"data_offsets":[0,0]})")), "unknown type \"F31\""},
      {"dtype_in_lower_case", file_of(one(R"({"dtype":"f32","shape":[0],"data_offsets":[0,0]})")),
       "unknown type \"f32\""},
      {"shape_is_number", file_of(one(R"({"dtype":"U8","shape":0,"data_offsets":[0,0]})")), "has a number where none"},
      {"shape_of_strings", file_of(one(R"({"dtype":"U8","shape":["0"],"data_offsets":[0,0]})")),
       "has a string where none"},
      {"shape_nested", file_of(one(R"({"dtype":"U8","shape":[[0]],"data_offsets":[0,0]})")), "has an array where none"},
      {"negative_dim", file_of(one(R"({"dtype":"U8","shape":[-1],"data_offsets":[0,0]})")), "negative number -1"},
      {"fractional_dim", file_of(one(R"({"dtype":"U8","shape":[1.5],"data_offsets":[0,0]})")),
       "1.5, which is not an integer"},
      {"exponent_dim", file_of(one(R"({"dtype":"U8","shape":[1e0],"data_offsets":[0,1]})"), "a"),
       "1e0, which is not an integer"},
      {"dim_beyond_64_bits", file_of(one(R"({"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,0]})")),
       "not an integer of 64 bits"},
      {"dim_beyond_63_bits", file_of(one(R"({"dtype":"U8","shape":[9223372036854775808],"data_offsets":[0,0]})")),
       "size 9223372036854775808"},
      {"negative_offset", file_of(one(R"({"dtype":"U8","shape":[1],"data_offsets":[-1,0]})")), "negative number -1"},
      {"one_offset", file_of(one(R"({"dtype":"U8","shape":[0],"data_offsets":[0]})")), "has 1 numbers instead of 2"},
      {"three_offsets", file_of(one(R"({"dtype":"U8","shape":[0],"data_offsets":[0,0,0]})")),
       "has 3 numbers instead of 2"},
      // Sizes.
      {"end_before_begin", file_of(one(R"({"dtype":"U8","shape":[2],"data_offsets":[2,0]})"), "ab"),
       "ends at byte 0, before it begins at 2"},
      {"product_overflows", file_of(one(R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]})")),
       "overflows"},
      {"product_overflows_to_a_small_number",
       file_of(one(R"({"dtype":"U8","shape":[4611686018427387905,4],"data_offsets":[0,4]})"), "abcd"), "overflows"},
      {"byte_count_overflows",
       file_of(one(R"({"dtype":"F64","shape":[2305843009213693953],"data_offsets":[0,8]})"), "abcdefgh"), "overflows"},
      {"overflow_before_a_zero",
       file_of(one(R"({"dtype":"U8","shape":[4611686018427387904,4,0],"data_offsets":[0,0]})")), "overflows"},
      {"half_a_byte", file_of(one(R"({"dtype":"F4","shape":[3],"data_offsets":[0,2]})"), "ab"),
       "does not fill whole bytes"},
      {"length_too_small", file_of(one(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), "abcd"),
       "needs 8 bytes, but its data_offsets span 4"},
      {"length_too_large", file_of(one(R"({"dtype":"F32","shape":[],"data_offsets":[0,8]})"), "abcdefgh"),
       "needs 4 bytes, but its data_offsets span 8"},
      {"too_many_dims",
       file_of(one(fmt::format(R"({{"dtype":"U8","shape":[{}],"data_offsets":[0,1]}})",
                               fmt::join(std::vector<int>(65, 1), ","))),
               "a"),
       "more than 64 dims"},
      // Tiles.
      {"hole_at_the_start", file_of(one(R"({"dtype":"U8","shape":[1],"data_offsets":[1,2]})"), "ab"),
       "without gap or overlap"},
      {"hole_between",
       file_of(
           R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}})",
           "abc"),
       "without gap or overlap"},
      {"overlap",
       file_of(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
           "abc"),
       "without gap or overlap"},
      {"same_range_twice",
       file_of(
           R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})",
           "ab"),
       "without gap or overlap"},
      {"bytes_after", file_of(one(R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})"), "ab"),
       "tensors have 1 bytes, but 2 bytes of data follow"},
      {"bytes_without_tensor", file_of("{}", "a"), "tensors have 0 bytes, but 1 bytes of data follow"},
      {"data_cut", file_of(one(R"({"dtype":"U8","shape":[3],"data_offsets":[0,3]})"), "ab"),
       "ends at byte 3, but only 2 bytes"},
      {"offset_far_beyond_the_file",
       file_of(one(R"({"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]})"), "a"),
       "ends at byte 18446744073709551615, but only 1"},
  };
  return all;
}

class EveryForm : public testing::TestWithParam<Form> {};

// Oracle: the format's rules, written out as one file for each. (tests/python/test_safetensors_headers.py holds them
// against the Python package, which also takes names twice and lists for objects.)
TEST_P(EveryForm, is_accepted_or_refused_by_its_reason) {
  const TestFolder folder;
  write_bytes(folder / "form.safetensors", GetParam().bytes);
  const std::string refusal = message_of<UserError>([&] { SafetensorsReader reader(folder / "form.safetensors"); });
  if (GetParam().message.empty()) {
    EXPECT_EQ(refusal, "");
  } else {
    EXPECT_THAT(refusal, AllOf(HasSubstr("form.safetensors"), HasSubstr(GetParam().message)));
  }
}
INSTANTIATE_TEST_SUITE_P(Safetensors, EveryForm, testing::ValuesIn(forms()),
                         [](const auto& info) { return info.param.what; });

// Whatever a file holds, opening and reading it either works or is refused; under AddressSanitizer this also shows that
// nothing is read beyond its bounds.
TEST(Safetensors, random_damage_is_refused_or_harmless) {
  const uint32_t seed = 20240611;
  std::mt19937 random(seed);
  const TestFolder folder;
  const std::string whole = golden_bytes();
  int refused = 0;
  for (int round = 0; round < 400; ++round) {
    std::string bytes = whole;
    for (uint32_t i = random() % 3 + 1; i > 0; --i) {
      const size_t place = random() % (random() % 4 == 0 ? 16 : bytes.size());
      switch (random() % 4) {
        case 0:
          bytes[place] = static_cast<char>(random());
          break;
        case 1:
          bytes[place] = static_cast<char>(bytes[place] ^ (1 << random() % 8));
          break;
        case 2:
          bytes.erase(place, random() % 9);
          break;
        default:
          bytes.insert(place, whole.substr(random() % whole.size(), random() % 9));
          break;
      }
      if (bytes.empty()) bytes.push_back('x');
    }
    write_bytes(folder / "damaged.safetensors", bytes);
    try {
      const SafetensorsReader reader(folder / "damaged.safetensors");
      for (const StoredTensor& tensor : reader.tensors()) reader.read_whole(tensor.name);
    } catch (const UserError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 200) << "seed " << seed;  // most damage falls on the header; the rest changes data only
}

TEST(Safetensors, only_regular_files_are_opened) {
  const TestFolder folder;
  std::filesystem::create_directory(folder / "folder.safetensors");
  ASSERT_EQ(::mkfifo((folder / "pipe.safetensors").c_str(), 0600), 0);
  EXPECT_THAT(message_of<UserError>([&] { SafetensorsReader reader(folder / "absent.safetensors"); }),
              HasSubstr("No such file"));
  EXPECT_THAT(message_of<UserError>([&] { SafetensorsReader reader(folder / "folder.safetensors"); }),
              HasSubstr("not a regular file"));
  EXPECT_THAT(message_of<UserError>([&] { SafetensorsReader reader(folder / "pipe.safetensors"); }),
              HasSubstr("not a regular file"));
}

TEST(Safetensors, a_file_truncated_after_it_was_opened_is_refused) {
  const TestFolder folder;
  write_safetensors(folder / "t.safetensors", std::vector<std::pair<std::string, at::Tensor>>{{"t", at::ones({100})}});
  const SafetensorsReader reader(folder / "t.safetensors");
  std::filesystem::resize_file(folder / "t.safetensors", std::filesystem::file_size(folder / "t.safetensors") - 1);
  EXPECT_THAT(message_of<UserError>([&] { reader.read_whole("t"); }), HasSubstr("truncated"));
}

// The value that the bits of a small float mean, by its definition: sign, `exponent_bits` of exponent, the rest
// mantissa. Not for infinities and NaN.
double value_of(uint32_t bits, int width, int exponent_bits) {
  const int mantissa_bits = width - 1 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                               : std::ldexp(mantissa + (1u << mantissa_bits), exponent - bias - mantissa_bits);
  return bits >> (width - 1) != 0 ? -magnitude : magnitude;
}

struct FloatType {
  StoredDtype dtype;
  int width;
  int exponent_bits;
};

// Oracle: the definition of each format, for every bit pattern that is a finite number. Exact: fp32 holds all of them.
TEST(Safetensors, every_small_float_is_read_as_its_value) {
  const TestFolder folder;
  for (const FloatType& type : {FloatType{StoredDtype::F16, 16, 5},
                                {StoredDtype::BF16, 16, 8},
                                {StoredDtype::F8_E4M3, 8, 4},
                                {StoredDtype::F8_E5M2, 8, 5}}) {
    const int64_t patterns = int64_t{1} << type.width;
    std::string data;
    for (int64_t bits = 0; bits < patterns; ++bits) {
      data += static_cast<char>(bits & 0xff);
      if (type.width == 16) data += static_cast<char>(bits >> 8);
    }
    const std::string header = fmt::format(R"({{"t":{{"dtype":"{}","shape":[{}],"data_offsets":[0,{}]}}}})",
                                           name_of(type.dtype), patterns, data.size());
    write_bytes(folder / "t.safetensors", file_of(header, data));
    const at::Tensor read = at::empty({patterns});
    SafetensorsReader(folder / "t.safetensors").read("t", 0, read);
    int finite = 0;
    for (int64_t bits = 0; bits < patterns; ++bits) {
      const float value = read.data_ptr<float>()[bits];
      if (!std::isfinite(value)) continue;
      ++finite;
      ASSERT_EQ(value, value_of(static_cast<uint32_t>(bits), type.width, type.exponent_bits))
          << name_of(type.dtype) << " " << bits;
    }
    // Not finite: all exponents of ones; of E4M3 only the two patterns of ones.
    const int not_finite = type.dtype == StoredDtype::F8_E4M3 ? 2 : 2 << (type.width - 1 - type.exponent_bits);
    EXPECT_EQ(finite, patterns - not_finite) << name_of(type.dtype);
  }
}

// Oracle: the values by index. The tensor is larger than two blocks, so that ranges begin, end and lie across the
// blocks' edges.
TEST(Safetensors, any_range_is_read_alone) {
  const TestFolder folder;
  const int64_t count = block_bytes + 1001;
  const at::Tensor values = at::arange(count).remainder(251).to(at::kFloat);
  const int64_t per_block = block_bytes / 2;
  for (at::ScalarType type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    write_safetensors(folder / "t.safetensors", std::vector<std::pair<std::string, at::Tensor>>{
                                                    {"before", at::ones({3}, at::kDouble)}, {"t", values.to(type)}});
    const SafetensorsReader reader(folder / "t.safetensors");
    for (const auto& [begin, length] : std::vector<std::pair<int64_t, int64_t>>{{0, count},
                                                                                {0, 0},
                                                                                {count, 0},
                                                                                {count - 1, 1},
                                                                                {5, per_block},
                                                                                {per_block - 1, 2},
                                                                                {7, per_block + 1},
                                                                                {1, 2 * per_block + 1}}) {
      const at::Tensor part = at::full({length + 2}, -1.0f);
      reader.read("t", begin, part.narrow(0, 1, length));
      EXPECT_TRUE(part.narrow(0, 1, length).equal(values.narrow(0, begin, length))) << begin << " + " << length;
      EXPECT_EQ(part[0].item<float>(), -1.0f);
      EXPECT_EQ(part[length + 1].item<float>(), -1.0f);
    }
    EXPECT_THROW(reader.read("t", count, at::empty({1})), InvariantError);
    EXPECT_THROW(reader.read("t", -1, at::empty({1})), InvariantError);
  }
}

TEST(Safetensors, types_that_do_not_convert_are_refused) {
  const TestFolder folder;
  write_bytes(folder / "model.safetensors", golden_bytes());
  const SafetensorsReader reader(folder / "model.safetensors");
  EXPECT_THAT(message_of<UserError>([&] { reader.read("i", 0, at::empty({2})); }),
              AllOf(HasSubstr("\"i\""), HasSubstr("I64")));
  EXPECT_THAT(message_of<UserError>([&] { reader.read("b", 0, at::empty({2}, at::kHalf)); }),
              AllOf(HasSubstr("\"b\""), HasSubstr("F32")));
}

// Oracle: rounding to nearest, ties to even, worked out by hand (bf16 keeps 8 bits of a significand: from 1 to 2 in
// steps of 1/128).
TEST(Safetensors, several_writers_fill_one_file_rounding_to_its_type) {
  const TestFolder folder;
  const SafetensorsHeader header = SafetensorsHeader::plan({{"t", StoredDtype::BF16, {2, 4}}});
  { const File file = create_safetensors(folder / "t.safetensors", header); }
  const auto write = [&](int64_t begin, const at::Tensor& data) {
    File file = File::open_for_writing(folder / "t.safetensors");
    write_elements(file, *header.find("t"), begin, data);
  };
  write(5, at::tensor({1 + 3 / 256.0f, 1 + 1.01f / 256, -3e38f}));
  write(0, at::tensor({1.0f, 1 + 1 / 256.0f}));
  write(2, at::tensor({4.0, 5.0, 6.0}, at::kDouble));
  const at::Tensor read = at::empty({8});
  SafetensorsReader(folder / "t.safetensors").read("t", 0, read);
  EXPECT_TRUE(read.narrow(0, 0, 7).equal(at::tensor({1.0f, 1.0f, 4.0f, 5.0f, 6.0f, 1 + 2 / 128.0f, 1 + 1 / 128.0f})))
      << read;
}

TEST(Safetensors, a_failed_write_leaves_the_old_file_and_nothing_else) {
  const TestFolder folder;
  write_bytes(folder / "t.safetensors", "old");
  std::filesystem::create_directory(folder / "sub");
  const std::vector<std::pair<std::string, at::Tensor>> twice = {{"t", at::ones({1})}, {"t", at::ones({1})}};
  EXPECT_THROW(write_safetensors(folder / "t.safetensors", twice), InvariantError);
  EXPECT_THROW(write_safetensors(folder / "sub", std::span(twice).first(1)),
               std::exception);  // cannot be renamed over a folder
  EXPECT_EQ(read_bytes(folder / "t.safetensors"), "old");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 2);
}

}  // namespace
}  // namespace conclave
