#pragma once

#include "families/family.h"

namespace conclave {

extern const Family qwen2_moe_family;

}  // namespace conclave
