#pragma once

#include "families/family.h"

namespace conclave {

extern const Family qwen3_moe_family;

}  // namespace conclave
