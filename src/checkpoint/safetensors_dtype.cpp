#include "checkpoint/safetensors_dtype.h"

#include <array>

#include "base/error.h"

namespace conclave {
namespace {

struct Row {
  std::string_view name;
  uint64_t bits;
  std::optional<at::ScalarType> scalar_type;
};

// Indexed by StoredDtype.
const std::array<Row, 22> rows = {{
    {"BOOL", 8, at::kBool},
    {"F4", 4, std::nullopt},
    {"F6_E2M3", 6, std::nullopt},
    {"F6_E3M2", 6, std::nullopt},
    {"U8", 8, at::kByte},
    {"I8", 8, at::kChar},
    {"F8_E5M2", 8, at::kFloat8_e5m2},
    {"F8_E4M3", 8, at::kFloat8_e4m3fn},
    {"F8_E8M0", 8, at::kFloat8_e8m0fnu},
    {"F8_E4M3FNUZ", 8, at::kFloat8_e4m3fnuz},
    {"F8_E5M2FNUZ", 8, at::kFloat8_e5m2fnuz},
    {"I16", 16, at::kShort},
    {"U16", 16, at::kUInt16},
    {"F16", 16, at::kHalf},
    {"BF16", 16, at::kBFloat16},
    {"I32", 32, at::kInt},
    {"U32", 32, at::kUInt32},
    {"F32", 32, at::kFloat},
    {"C64", 64, at::kComplexFloat},
    {"F64", 64, at::kDouble},
    {"I64", 64, at::kLong},
    {"U64", 64, at::kUInt64},
}};

const Row& row_of(StoredDtype dtype) {
  return rows.at(static_cast<size_t>(dtype));
}

}  // namespace

std::string_view name_of(StoredDtype dtype) {
  return row_of(dtype).name;
}

std::optional<StoredDtype> stored_dtype_named(std::string_view name) {
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].name == name) return static_cast<StoredDtype>(i);
  }
  return std::nullopt;
}

uint64_t bits_of(StoredDtype dtype) {
  return row_of(dtype).bits;
}

std::optional<at::ScalarType> scalar_type_of(StoredDtype dtype) {
  return row_of(dtype).scalar_type;
}

StoredDtype stored_dtype_of(at::ScalarType type) {
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].scalar_type == type) return static_cast<StoredDtype>(i);
  }
  throw InvariantError(
      fmt::format("invariant broken: safetensors files have no type for {} tensors", c10::toString(type)));
}

bool converts_to_fp32(StoredDtype dtype) {
  switch (dtype) {
    case StoredDtype::F64:
    case StoredDtype::F32:
    case StoredDtype::F16:
    case StoredDtype::BF16:
    case StoredDtype::F8_E4M3:
    case StoredDtype::F8_E5M2:
      return true;
    default:
      return false;
  }
}

}  // namespace conclave
