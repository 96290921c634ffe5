#pragma once

#include "families/family.h"

namespace conclave {

extern const Family deepseek_v2_family;

}  // namespace conclave
