#pragma once

#include "families/family.h"

namespace conclave {

extern const Family deepseek_v3_family;

}  // namespace conclave
