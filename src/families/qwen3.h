#pragma once

#include "families/family.h"

namespace conclave {

extern const Family qwen3_family;

}  // namespace conclave
