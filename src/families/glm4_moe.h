#pragma once

#include "families/family.h"

namespace conclave {

extern const Family glm4_moe_family;

}  // namespace conclave
