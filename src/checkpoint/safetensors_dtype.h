// The element types of safetensors files. Enumerators have the format's own names and the reference writer's order:
// tensors are stored by descending type, so that wide elements come first and stay aligned.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string_view>

namespace conclave {

enum class StoredDtype : uint8_t {
  BOOL,
  F4,
  F6_E2M3,
  F6_E3M2,
  U8,
  I8,
  F8_E5M2,
  F8_E4M3,
  F8_E8M0,
  F8_E4M3FNUZ,
  F8_E5M2FNUZ,
  I16,
  U16,
  F16,
  BF16,
  I32,
  U32,
  F32,
  C64,
  F64,
  I64,
  U64,
};

std::string_view name_of(StoredDtype dtype);
std::optional<StoredDtype> stored_dtype_named(std::string_view name);

uint64_t bits_of(StoredDtype dtype);  // of one element: 4 (F4) to 64

// The tensor type of the same representation; none for types narrower than a byte.
std::optional<at::ScalarType> scalar_type_of(StoredDtype dtype);
// Its inverse. InvariantError for a type that the format lacks.
StoredDtype stored_dtype_of(at::ScalarType type);

// Whether weights may be stored so: a floating-point type that converts to fp32.
bool converts_to_fp32(StoredDtype dtype);

}  // namespace conclave
